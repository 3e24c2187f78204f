"""Lists name files by lines, by a table with ids, or as a fairseq manifest."""

import os

import pytest

from featurestore.audio import AudioFile, discover
from featurestore.errors import SourceError


@pytest.fixture
def listed(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def files(source, **settings):
    return [(file.track_id, str(file.path)) for file in discover(source, **settings)]


def test_lines_are_paths_from_the_list_on(listed, tmp_path):
    source = listed("list.txt", "b/y.wav\n\na/x.flac\r\n./c.mp3\n../d.wav\n/data/e.wav\n")
    assert files(source) == [
        ("../d", f"{tmp_path}/../d.wav"),
        ("a/x", f"{tmp_path}/a/x.flac"),
        ("b/y", f"{tmp_path}/b/y.wav"),
        ("c", f"{tmp_path}/c.mp3"),
        ("data/e", "/data/e.wav"),
    ]
    assert [track_id for track_id, _ in files(source, id_from="stem")] == ["c", "d", "e", "x", "y"]
    assert files(source, dataset="smd")[1][0] == "smd/a/x"
    assert files(source, file_pattern="*.flac") == [("a/x", f"{tmp_path}/a/x.flac")]


def test_lists_may_begin_with_a_byte_order_mark_and_hold_any_bytes(listed, tmp_path):
    [first, second] = discover(listed("list.TXT", b"\xef\xbb\xbfa.wav\nb\xe9.wav"))
    assert first == AudioFile("a", tmp_path / "a.wav")
    assert second.track_id == "b\\xe9"
    assert os.fsencode(second.path) == os.fsencode(tmp_path) + b"/b\xe9.wav"


def test_a_table_has_its_own_ids(listed, tmp_path):
    source = listed("list.csv", 'year,path,track_id\n1,b/y.wav,second\n2,"a, b/x.wav",first/one\n')
    expected = [("first/one", f"{tmp_path}/a, b/x.wav"), ("second", f"{tmp_path}/b/y.wav")]
    assert files(source) == expected
    assert files(source, id_from="stem") == expected
    assert files(source, dataset="d")[0][0] == "d/first/one"


def test_ids_of_a_table_may_be_anything(listed):
    odd = ["..", "../a", "a\nb", "\U0001f3b5", "x" * 5_000, "nul\0"]
    rows = "".join(f'"{track_id}",{i}.wav\n' for i, track_id in enumerate(odd))
    assert [track_id for track_id, _ in files(listed("list.csv", "track_id,path\n" + rows))] == sorted(odd)


@pytest.mark.parametrize(("root", "expected"), [("/data/set", "/data/set"), ("set", "{}/set")])
def test_a_manifest_begins_with_its_root(listed, tmp_path, root, expected):
    source = listed("train.tsv", f"{root}\nb/y.wav\t16000\na/x.wav\t5\n")
    expected = expected.format(tmp_path)
    assert files(source) == [("a/x", f"{expected}/a/x.wav"), ("b/y", f"{expected}/b/y.wav")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "names no file"),
        ("a.txt", "\n \n", "names no file"),
        ("a.txt", "x.wav\n.\n", "line 2"),
        ("a.csv", "", "track_id,path"),
        ("a.csv", "x.wav\ny.wav\n", "track_id,path"),
        ("a.csv", "track_id,path\n", "names no file"),
        ("a.csv", "track_id,path\na,x.wav\n,y.wav\n", "line 3"),
        ("a.csv", "track_id,path\na\n", "line 2"),
        ("a.csv", 'track_id,path\na,"x.wav\n', "line 2"),
        ("a.tsv", "", "names no file"),
        ("a.tsv", "/root\n", "names no file"),
        ("a.tsv", "/root\nx.wav\n", "line 2"),
        ("a.tsv", "/root\nx.wav\tlong\n", "line 2"),
    ],
)
def test_mistakes_are_told_with_their_line(listed, name, text, message):
    with pytest.raises(SourceError, match=message):
        discover(listed(name, text))


def test_a_file_named_twice_is_a_collision(listed):
    with pytest.raises(SourceError, match=r"a\.wav' is named twice"):
        discover(listed("a.txt", "a.wav\nb.wav\na.wav\n"))
    with pytest.raises(SourceError, match=r"1: .*a\.wav' and .*b\.wav'"):
        discover(listed("a.csv", "track_id,path\n1,a.wav\n1,b.wav\n"))


@pytest.mark.timeout(20)
def test_a_list_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    for name in ("pipe.txt", "gone.csv"):
        with pytest.raises(SourceError, match="not a file"):
            discover(tmp_path / name)
