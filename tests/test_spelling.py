"""A path that is not there: one that is there is told, of the same letters in another normalisation, or close."""

import os
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import FeatureStore
from featurestore.audio import discover, load_audio
from featurestore.errors import AudioNotFoundError, ModelError, NotAStoreError, SourceError
from featurestore.models import load_model
from featurestore.spelling import close_hint, letters, other_spelling, spelling_hint
from featurestore.training.labels import write_manifests

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take both for one name")


def composed(text):
    return unicodedata.normalize("NFC", text)


def decomposed(text):
    return unicodedata.normalize("NFD", text)


@pytest.fixture
def there(tmp_path):
    """Makes a file below a folder of the test."""

    def make(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    return make


@pytest.mark.parametrize(
    ("disk", "given"),
    [
        (decomposed("Éclair.wav"), composed("Éclair.wav")),
        (composed("Éclair.wav"), decomposed("Éclair.wav")),
        (decomposed("Björk") + "/a.wav", composed("Björk") + "/a.wav"),
        (decomposed("Björk/Jóga.wav"), composed("Björk/Jóga.wav")),
        (composed("Björk") + "/x/" + decomposed("Jóga.wav"), decomposed("Björk") + "/x/" + composed("Jóga.wav")),
        (composed("Ñ") + decomposed("Ñ.wav"), composed("ÑÑ.wav")),  # a mixture
        (decomposed("가.wav"), composed("가.wav")),  # Hangul
        ("\u212b.wav", composed("\u212b.wav")),  # the sign of the unit, whose letter is another one
    ],
)
def test_the_other_spelling_is_found(there, tmp_path, disk, given):
    path = there(disk)
    assert other_spelling(tmp_path / given) == str(path)
    assert other_spelling(f"{tmp_path}//{given}") == str(path)
    assert letters(disk) == letters(given)


def test_a_folder_in_both_spellings_is_looked_for_in_both(there, tmp_path):
    there(composed("Björk") + "/other.wav")
    path = there(decomposed("Björk") + "/a.wav")
    assert other_spelling(tmp_path / composed("Björk") / "a.wav") == str(path)


def test_other_letters_are_not_the_same(there, tmp_path):
    there("Eclair.wav")
    there(composed("ÉCLAIR.wav"))
    for name in ("Éclair.wav", "éclair.wav", "plain.wav", "nul\0é.wav", "é" * 300):
        assert other_spelling(tmp_path / name) is None
        assert spelling_hint(tmp_path / name) == ""


def test_relative_paths_and_names_that_are_not_utf8(there, tmp_path, monkeypatch):
    path = there(decomposed("Éclair") + "/a.wav")
    monkeypatch.chdir(tmp_path)
    assert other_spelling(composed("Éclair") + "/a.wav") == str(path.relative_to(tmp_path))
    assert other_spelling("./" + composed("Éclair") + "/a.wav").endswith(str(path.relative_to(tmp_path)))
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "wb"):
        assert other_spelling("caf\udce8.wav") is None


def test_a_name_that_appears_later_is_found(there, tmp_path):
    there(composed("Ö.wav"))
    missing = tmp_path / composed("Éclair.wav")
    assert other_spelling(missing) is None
    path = there(decomposed("Éclair.wav"))
    os.utime(tmp_path, ns=(1, 1))  # whatever the resolution of its clock
    assert other_spelling(missing) == str(path)


@pytest.mark.slow
@given(text=st.text(max_size=20))
def test_letters_are_the_same_in_every_normalisation(text):
    assert letters(composed(text)) == letters(decomposed(text)) == letters(text)


def test_the_hint_shows_what_a_screen_does_not(there, tmp_path):
    path = there(decomposed("Müsli/Éclair Ñandú.wav"))
    hint = spelling_hint(tmp_path / decomposed("Müsli") / composed("Éclair Ñandú.wav"))
    assert repr(str(path)) in hint
    assert r"'E\u0301clair N\u0303andu\u0301.wav' (NFD of Unicode)" in hint
    assert r"not '\xc9clair \xd1and\xfa.wav' (NFC)" in hint


def test_wherever_a_path_is_not_there_the_other_one_is_told(there, tmp_path):
    wrong = tmp_path / composed("É") / "a.wav"
    there(decomposed("É") + "/a.wav")
    with pytest.raises(AudioNotFoundError, match=r"is not there: .* is there, which looks the same.*E\\u0301"):
        load_audio(wrong)
    with pytest.raises(SourceError, match=r"is not a folder.*E\\u0301"):
        write_manifests(wrong.parent, tmp_path / "out")
    with pytest.raises(NotAStoreError, match=r"does not exist.*E\\u0301"):
        FeatureStore(wrong.parent)
    with pytest.raises(ModelError, match=r"there is no folder .*E\\u0301"):
        load_model(wrong.parent)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("musik", "music"),
        ("musik/", "music"),
        ("Music/jazz/blue.wav", "music/jazz/blue.wav"),
        ("music/jaz/blue.wav", "music/jazz/blue.wav"),
        ("music/jazz/bleu.wav", "music/jazz/blue.wav"),
        ("musik/rock", None),  # the folder that is close has no such part
        ("musik/jaz", None),
        ("features", None),
        ("music", None),
        ("nul\0", None),
    ],
)
def test_a_path_that_is_mistyped_is_guessed(there, tmp_path, monkeypatch, given, meant):
    there("music/jazz/blue.wav")
    monkeypatch.chdir(tmp_path)
    assert close_hint(given) == ("" if meant is None else f" (did you mean {meant!r}?)")
    told = "" if meant is None else f" (did you mean {str(tmp_path / meant)!r}?)"
    assert close_hint(tmp_path / given) == told


def test_the_same_letters_are_closer_than_others(there, tmp_path):
    there(composed("Müsli.wav"))
    there(decomposed("Müsli") + "2.wav")
    assert "which looks the same" in close_hint(tmp_path / decomposed("Müsli.wav"))


def test_wherever_one_path_was_typed_it_is_guessed(there, tmp_path):
    music = there("music/a.wav").parent
    wrong, told = tmp_path / "musik", re.escape(f" (did you mean {str(music)!r}?)")
    with pytest.raises(SourceError, match=rf"^the source '{wrong}' is not there{told}: give"):
        discover(wrong)
    with pytest.raises(SourceError, match=rf"^the source '{wrong}/\*' holds no audio file.*{told}$"):
        discover(wrong / "*")
    with pytest.raises(SourceError, match=rf"^'{wrong}' is not a folder{told}: a manifest"):
        write_manifests(wrong, tmp_path / "out")
    with pytest.raises(NotAStoreError, match=rf"^{wrong} does not exist{told}: give"):
        FeatureStore(wrong)
    with pytest.raises(ModelError, match=rf"there is no folder {wrong}{told}, and"):
        load_model(wrong)
