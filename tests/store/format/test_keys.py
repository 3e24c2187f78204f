"""Keys: any id as the name of a folder that every file system keeps as it is."""

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore.errors import SettingError
from featurestore.store.format.keys import MAX_ID_BYTES, MAX_KEY_BYTES, decode_key, encode_key, encode_keys

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
AWKWARD = [
    "..",
    ".",
    "zarr.json",
    "a/b",
    "a\\b",
    "\0",
    "🎵",
    "x" * 5000,
    "CON",
    "con",
    "lpt1",
    "nul.txt",
    "=h",
    "=",
    " ",
]


@given(IDS)
@example("=h" + "0" * 64)
@example("con")
@example("x" * 200)
@example("x" * 201)
@example("é" * 34)
@pytest.mark.slow
def test_keys_can_be_turned_back(track_id):
    key = encode_key(track_id)
    assert re.fullmatch(r"[a-z0-9_=-]{1,200}", key)
    decoded = decode_key(key)
    assert decoded == track_id or (decoded is None and len(track_id.encode()) > MAX_KEY_BYTES // 3)


@given(IDS, IDS)
@example("a", "A")
@example("\u00e9", "e\u0301")
@example("ß", "ss")
@example("x" * 201, "X" * 201)
def test_different_ids_have_different_keys_on_any_file_system(one, other):
    if one != other:
        first, second = encode_key(one), encode_key(other)
        assert first.casefold() != second.casefold()
        assert unicodedata.normalize("NFC", first) != unicodedata.normalize("NFC", second)


@pytest.mark.parametrize("track_id", AWKWARD)
def test_awkward_ids_have_plain_keys(track_id):
    key = encode_key(track_id)
    assert re.fullmatch(r"[a-z0-9_=-]{1,200}", key)
    assert key not in {"zarr.json", ".", "..", "con", "lpt1"}
    assert decode_key(key) in {track_id, None}


@pytest.mark.parametrize("name", ["CON", "prn", "aux", "nul", "com1", "LPT9", "com0"])
def test_no_key_is_the_name_of_a_device(name):
    assert not re.fullmatch(r"(?i:con|prn|aux|nul|com\d|lpt\d)", encode_key(name))


@pytest.mark.parametrize(
    "track_id", ["", "\ud800", "a\udcffb", "x" * (MAX_ID_BYTES + 1), "é" * (MAX_ID_BYTES // 2 + 1)]
)
def test_ids_without_a_key_are_refused(track_id):
    with pytest.raises(SettingError, match="id"):
        encode_key(track_id)


@given(st.text(st.sampled_from("abc=0123456789h.Z"), max_size=80))
@example("=h" + "0" * 63)
@example("=61")
@example("=ff")
@example("=c3=28")
@example("con")
@example("")
@example("\udcff")
def test_what_is_no_key_is_never_read_as_one(name):
    try:
        track_id = decode_key(name)
    except ValueError:
        return
    assert track_id is None or encode_key(track_id) == name


@given(st.lists(IDS, max_size=8))
@example(AWKWARD)
@example([])
def test_many_keys_are_those_of_each(track_ids):
    assert encode_keys(track_ids) == [encode_key(track_id) for track_id in track_ids]


@pytest.mark.parametrize("bad", ["", "\ud800", "x" * (MAX_ID_BYTES + 1)])
def test_many_keys_are_refused_if_one_is_none(bad):
    with pytest.raises(SettingError):
        encode_keys(["a", bad])
