"""A source is a directory, a file, a pattern or a list; each file gets an id, and no two the same."""

import os
import sys
import unicodedata
from pathlib import Path

import pytest

from featurestore.audio import AudioFile, discover, globbing, load_audio
from featurestore.errors import AudioFormatError, AudioNotFoundError, SettingError, SourceError


@pytest.fixture
def folder(tmp_path):
    """Makes empty files in a folder: which of them are audio is told by their names."""

    def make(*names):
        root = tmp_path / "music"
        root.mkdir(exist_ok=True)
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return root

    return make


def ids(source, **settings):
    return [file.track_id for file in discover(source, **settings)]


def test_a_directory_is_searched_to_its_depths_for_suffixes_in_any_case(folder):
    root = folder("b.WAV", "a/c.flac", "a/d/e.Mp3", "a/notes.txt", "cover.jpg", "f", "a.b.ogg")
    assert discover(root) == [
        AudioFile("a.b", root / "a.b.ogg"),
        AudioFile("a/c", root / "a/c.flac"),
        AudioFile("a/d/e", root / "a/d/e.Mp3"),
        AudioFile("b", root / "b.WAV"),
    ]


def test_every_usual_suffix_is_found(folder):
    names = "aac aif aiff ape au caf flac m4a mka mp3 mp4 oga ogg opus rf64 voc w64 wav webm wma wv"
    suffixes = names.split()
    root = folder(*(f"{suffix}.{suffix}" for suffix in suffixes), "x.mat", "y.raw", "z.m3u8")
    assert ids(root) == suffixes


def test_strings_and_relative_paths_name_sources_too(folder, monkeypatch):
    root = folder("a/x.wav")
    monkeypatch.chdir(root.parent)
    assert discover("music") == [AudioFile("a/x", Path("music/a/x.wav"))]
    monkeypatch.chdir(root)
    assert ids(".") == ["a/x"]


def test_hidden_files_and_directories_are_skipped(folder):
    assert ids(folder("x.wav", "._x.wav", ".hidden.wav", ".Trash/y.wav", "a/._z.wav")) == ["x"]


def test_folders_that_systems_make_for_themselves_are_skipped(folder):
    """Resource forks of netatalk and of archives, previews and bins of network disks."""
    names = (
        ".AppleDouble",
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "@Recycle",
        "$RECYCLE.BIN",
        "lost+found",
        ".Trash-1000",
    )
    root = folder("x.wav", "a/x.wav", *(f"{name}/x.wav" for name in names), *(f"a/{name}/y.wav" for name in names))
    assert ids(root) == ["a/x", "x"]
    for pattern in ("*", "**", "**/*.wav"):
        assert ids(f"{root}/{pattern}") == ["a/x", "x"]
    assert ids(f"{root}/*/x.wav") == ["a/x"]
    assert ids(root / "__MACOSX") == ids(f"{root}/@eaDir/*") == ["x"]  # who names one, means it
    assert ids(f"{root}/?/lost+found") == ["a/lost+found/y"]


def test_a_companion_of_macos_beside_a_file_is_no_track_and_alone_is_called_what_it_is(folder):
    root = folder("song.mp3", "._song.mp3", ".AppleDouble/song.mp3")
    (root / "._song.mp3").write_bytes(bytes.fromhex("0005160700020000") + b"Mac OS X        " + bytes(60))
    assert ids(root) == ids(f"{root}/*") == ["song"]
    (root / "list.txt").write_text("._song.mp3\n")
    for source in (root / "._song.mp3", root / "list.txt", f"{root}/._*.mp3"):
        [file] = discover(source)
        with pytest.raises(AudioFormatError, match=r"\._song\.mp3' is AppleDouble metadata of macOS, not audio"):
            load_audio(file.path, 24_000)


def test_long_paths_are_found(tmp_path):
    root = tmp_path
    while len(os.fsencode(root)) < 1_500:
        root /= "d" * 60
    root.mkdir(parents=True)
    (root / "a.wav").touch()
    [file] = discover(tmp_path)
    assert file.path == root / "a.wav"
    assert ids(root / "a.wav") == ids(f"{root}/*.wav") == ["a"]


def test_a_directory_named_like_audio_is_searched_and_is_no_track(folder):
    assert ids(folder("x.wav/inner.wav", "empty.wav/notes.txt")) == ["x.wav/inner"]


def test_a_lone_file_is_its_stem_whatever_its_suffix(folder):
    root = folder("a/x.wav", "y.sound")
    assert ids(root / "a/x.wav") == ["x"]
    assert ids(root / "y.sound") == ["y"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["x"]),
        ("*", ["a/b/z", "a/x", "a/y", "x"]),
        ("a/*", ["b/z", "x", "y"]),
        ("**/*.wav", ["a/b/z", "a/x", "x"]),
        ("**", ["a/b/z", "a/x", "a/y", "x"]),
        ("a/**/z.*", ["b/z"]),
        ("a/[xy].*", ["x", "y"]),
        ("?/x.wav", ["a/x"]),
        ("*/b", ["a/b/z"]),
        ("./a/../a/*.flac", ["y"]),
    ],
)
def test_a_pattern_gives_ids_below_its_part_without_wildcards(folder, monkeypatch, pattern, expected):
    root = folder("x.wav", "a/x.wav", "a/y.flac", "a/b/z.wav", "a/notes.txt", "a/.w.wav")
    assert ids(f"{root}/{pattern}") == expected
    monkeypatch.chdir(root)
    assert ids(pattern) == expected


def test_a_directory_with_wildcards_in_its_name_is_a_directory(folder):
    assert ids(folder("Album [1999]/x.wav") / "Album [1999]") == ["x"]


def test_file_pattern_chooses_names_in_any_case(folder):
    root = folder("a/x.wav", "y.WAV", "a/z.flac")
    assert ids(root, file_pattern="*.wav") == ["a/x", "y"]
    assert ids(f"{root}/a/*", file_pattern="*.FLAC") == ["z"]
    assert ids(folder("a/e\u0301.wav"), file_pattern="\u00c9*") == ["a/e\u0301"]  # nor does normalisation count
    with pytest.raises(SourceError, match=r"\*\.mp3"):
        discover(root, file_pattern="*.mp3")
    with pytest.raises(SettingError, match="names of files"):
        discover(root, file_pattern="a/*.wav")


def test_dataset_is_put_before_every_id(folder):
    root = folder("a/x.wav", "y.wav")
    assert ids(root, dataset="smd") == ["smd/a/x", "smd/y"]
    with pytest.raises(SettingError, match="dataset"):
        discover(root, dataset="")


def test_ids_from_stems_on_request(folder):
    assert ids(folder("a/x.wav", "b/y.wav"), id_from="stem") == ["x", "y"]
    with pytest.raises(SettingError, match="id_from"):
        discover(folder("a/x.wav"), id_from="name")


def test_equal_stems_in_two_folders_never_collide(folder):
    assert ids(folder("a/x.wav", "b/x.wav")) == ["a/x", "b/x"]


def test_a_collision_names_both_files_and_the_way_out(folder):
    root = folder("a/x.wav", "a/x.flac", "y.wav")
    with pytest.raises(SourceError, match=r"a/x: .*a/x\.flac.* and .*a/x\.wav.*\n.*track_id") as caught:
        discover(root)
    assert "y.wav" not in str(caught.value)
    with pytest.raises(SourceError, match='id_from="path"'):
        discover(folder("b/y.wav"), id_from="stem")


def test_many_collisions_are_counted(folder):
    root = folder(*(f"{i}.{suffix}" for i in range(9) for suffix in ("wav", "flac")))
    with pytest.raises(SourceError, match=r"and 6 more"):
        discover(root)


@pytest.mark.parametrize("source", ["", "nowhere", "nowhere.wav"])
def test_a_source_that_is_not_there_says_what_may_be_given(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="is not there: give a directory"):
        discover(source)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take both for one name")
@pytest.mark.parametrize("source", ["{}/Bj\u00f6rk", "{}/Bj\u00f6rk/J\u00f3ga.wav", "{}/Bj\u00f6rk/list.txt"])
def test_a_source_in_another_normalisation_shows_the_name_that_is_there(folder, source):
    root = folder("Bjo\u0308rk/Jo\u0301ga.wav", "Bjo\u0308rk/list.txt")
    there = unicodedata.normalize("NFD", source.format(root))
    with pytest.raises(SourceError, match=rf"is not there; but '{there}' is there, .*'Bjo\\u0308rk' .NFD"):
        discover(source.format(root))


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take both for one name")
@pytest.mark.parametrize(
    "pattern",
    [
        "{}/J\u00f3*.wav",
        "{}/a/J\u00f3ga.*",
        "{}/Bj\u00f6rk/*.wav",
        "{}/Bj\u00f6r?/*",
        "{}/**/J\u00f3*",
        "{}/a*/../Bj\u00f6*",
    ],
)
def test_a_pattern_in_another_normalisation_shows_what_it_would_match(folder, pattern):
    root = folder("Jo\u0301ga.wav", "a/Jo\u0301ga.wav", "Bjo\u0308rk/x.wav")
    message = r"holds no audio file.*is there, which looks the same: it has '\w*\\u030[18].* .NFD of .*NFC"
    with pytest.raises(SourceError, match=message):
        discover(pattern.format(root))
    assert ids(unicodedata.normalize("NFD", pattern.format(root)))


def test_a_pattern_of_letters_that_nothing_has_finds_nothing(folder):
    root = folder("Jo\u0308ga.wav", "J\u00f3ga.txt")
    for pattern in ("J\u00f3*.wav", "J\u00f3*", "J\u00f3/*", "J\u00f3/*/x.wav"):
        with pytest.raises(SourceError, match="holds no audio file") as caught:
            discover(f"{root}/{pattern}")
        assert "looks the same" not in str(caught.value)


def test_an_empty_source_says_what_was_looked_for(folder):
    root = folder("notes.txt", "a/cover.jpg")
    for source in (root, f"{root}/*", f"{root}/**/*.wav"):
        with pytest.raises(SourceError, match=r"no audio file.*\.flac.*\.wav"):
            discover(source)


def test_dangling_links_stay_in_the_list(folder):
    root = folder("x.wav")
    (root / "gone.wav").symlink_to(root / "nowhere.wav")
    (root / "self.wav").symlink_to(root / "self.wav")
    assert ids(root) == ["gone", "self", "x"]
    assert ids(root / "gone.wav") == ["gone"]
    assert ids(f"{root}/*.wav") == ["gone", "self", "x"]


def test_links_to_files_and_directories_are_followed(folder, tmp_path):
    root = folder("x.wav")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/y.wav").touch()
    (root / "linked").symlink_to(tmp_path / "pool")
    (root / "z.wav").symlink_to(tmp_path / "pool/y.wav")
    assert ids(root) == ["linked/y", "x", "z"]


@pytest.mark.parametrize("pattern", ["", "*", "*/*", "**/*.wav", "*/**/*.wav", "[ab]"])
def test_a_directory_that_cannot_be_read_is_named_with_the_files(folder, monkeypatch, pattern):
    root = folder("a/x.wav", "b/y.wav")
    refused = str(root / "b")
    for name in ("scandir", "listdir"):
        original = getattr(os, name)

        def read(path, original=original):
            if os.fspath(path).rstrip("/") == refused:
                raise PermissionError(13, "Permission denied", path)
            return original(path)

        monkeypatch.setattr(globbing.os, name, read)
    assert ids(root / pattern if pattern else root) == ["a/x", "b"]
    with pytest.raises(AudioNotFoundError, match="a directory that cannot be read: Permission denied"):
        load_audio(root / "b", 24_000)


@pytest.mark.timeout(60)
def test_loops_of_links_end(folder):
    root = folder("a/x.wav", "b/y.wav")
    (root / "a/up").symlink_to(root)
    (root / "a/to_b").symlink_to(root / "b")
    (root / "b/to_a").symlink_to(root / "a")
    assert ids(root) == ["a/to_b/y", "a/x", "b/to_a/x", "b/y"]
    assert ids(f"{root}/**/x.wav") == ["a/x", "b/to_a/x"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_maze_of_links_is_refused(folder):
    names = [f"d{i}" for i in range(12)]
    root = folder(*(f"{name}/x.wav" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (root / name / f"to_{other}").symlink_to(root / other)
    with pytest.raises(SourceError, match="links lead"):
        discover(root)


@pytest.mark.parametrize(
    "stem", ["\U0001f3b5 nana", "two\nlines", "cafe\u0301", "a'b\"c", " . ", "%41\\x41", "x" * 250]
)
def test_odd_names_are_ids_as_they_are(folder, stem):
    root = folder(f"{stem}.wav")
    assert discover(root) == [AudioFile(stem, root / f"{stem}.wav")]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_that_are_not_utf8_give_valid_ids(folder):
    root = folder("x.wav")
    name = b"caf\xe9.wav"
    with open(os.path.join(os.fsencode(root), name), "wb") as file:
        file.write(b"found")
    [file, _] = discover(root)
    assert file.track_id == "caf\\xe9"
    assert file.path.read_bytes() == b"found"
    (root / "caf\\xe9.flac").touch()
    with pytest.raises(SourceError, match="share a track id") as caught:
        discover(root)
    str(caught.value).encode()  # messages are valid unicode too


def test_a_source_may_be_the_address_of_a_local_folder_and_of_no_other(folder, monkeypatch):
    root = folder("a.wav")
    monkeypatch.setenv("HOME", str(root.parent))
    assert [file.path for file in discover(root.as_uri())] == [file.path for file in discover("~/music")]
    with pytest.raises(SourceError, match="is an address"):
        discover("s3://bucket/music")
