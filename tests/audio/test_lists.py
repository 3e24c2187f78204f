"""Lists name files by lines, as a playlist, by a table with ids, or as a fairseq manifest."""

import os
import sys
import unicodedata

import pytest

from featurestore.audio import AudioFile, discover, load_audio
from featurestore.audio.lists import read_list
from featurestore.errors import AudioNotFoundError, SourceError


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


@pytest.mark.parametrize("root", ["set", "./set", "{}/set", "../{name}/set", "set one", "S\u00e9t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n", "\ufeff\r\n"])
def test_a_manifest_begins_with_its_root(listed, tmp_path, root, end, start):
    root = root.format(tmp_path, name=tmp_path.name)
    (tmp_path / root).mkdir()
    source = listed("train.tsv", start + end.join([root, "b/y.wav\t16000", "a/x y.wav\t5", ""]))
    folder = tmp_path / root
    assert files(source) == [("a/x y", f"{folder}/a/x y.wav"), ("b/y", f"{folder}/b/y.wav")]
    assert [x.samples for x in read_list(source)] == [16_000, 5]


@pytest.mark.parametrize(
    "text",
    [
        "/data/a.wav\t88200\n/data/b.wav\t88200\n",
        "\ufeff/data/a.wav\t88200\r\n/data/b.wav\t88200\r\n",
        "a.wav\t88200",
        "\n\na.wav\t88200\nb.wav\t1\n",
        "path\tsamples\na.wav\t88200\n",
        "\t88200\n",
        "set\t\na.wav\t1\n",
    ],
)
def test_a_manifest_without_its_root_loses_no_track_but_is_refused(listed, tmp_path, text):
    (tmp_path / "set").mkdir()
    source = listed("train.tsv", text)
    number = 3 if text.startswith("\n\n") else 1
    for read in (discover, read_list):
        with pytest.raises(SourceError, match=rf"line {number} of .*train\.tsv' must be the root .*'/' if paths"):
            read(source)


@pytest.mark.parametrize("root", ["nowhere", "/no/where", "a.wav", "a.wav/x", " set", "set "])
def test_the_root_of_a_manifest_must_be_a_folder(listed, tmp_path, root):
    (tmp_path / "set").mkdir()
    (tmp_path / "a.wav").touch()
    source = listed("train.tsv", f"{root}\nx.wav\t5\n")
    with pytest.raises(SourceError, match=rf"line 1 of .*train\.tsv' must be the root .*{root}' is not a folder"):
        discover(source)
    # Who asks for the names alone, for labels of a store's features, may have the audio elsewhere.
    assert [x.relative for x in read_list(source)] == ["x.wav"]


def test_a_root_of_absolute_paths(listed, tmp_path):
    assert files(listed("train.tsv", f"/\n{tmp_path}/a.wav\t5\n"))[0][1] == f"{tmp_path}/a.wav"


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
        ("a.csv", "track_id,path\na,My Song, live.wav\n", "line 2 .* more fields than the header.*double quotes"),
        ("a.csv", "path,track_id\nMy, Song.wav,b\n", "line 2 .* more fields"),
        ("a.csv", "track_id,path,path\na,x.wav,y.wav\n", "2 columns path .'path', 'path'.: leave one"),
        ("a.csv", "track_id,path,Path\na,x.wav,y.wav\n", "2 columns path .'path', 'Path'."),
        ("a.csv", "track_id, path,path\na,x.wav,y.wav\n", "2 columns path .' path', 'path'."),
        ("a.csv", "track_id,PATH ,Path\na,x.wav,y.wav\n", "2 columns path"),
        ("a.csv", "track_id,path,track_id\na,x.wav,b\n", "2 columns track_id"),
        ("a.csv", "\ufeffTrack_ID,path,track_id\na,x.wav,b\n", "2 columns track_id .'Track_ID', 'track_id'."),
        ("a.csv", "Track_ID,Path\na,x.wav\n", "header track_id,path, not 'Track_ID,Path'"),
        ("a.tsv", "", "names no file: it is empty"),
        ("a.tsv", "\ufeff\r\n", "names no file: it is empty"),
        ("a.tsv", "/\n", "names no file"),
        ("a.tsv", "/\nx.wav\n", "line 2"),
        ("a.tsv", "/\nx.wav\tlong\n", "line 2"),
        ("a.txt", "a.wav\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a.csv", "track_id,path\na,a.wav\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a.m3u8", "", "names no file"),
        ("a.m3u", "#EXTM3U\n#EXTINF:1,A\n", "names no file"),
        ("a.m3u", "a.mp3\nhttp://example.org/live\n", "line 2 of .*'http://example.org/live', and no file"),
        ("a.m3u8", "#EXTM3U\nHTTPS://example.org/a.mp3\n", "line 2 .* an address, .*: download it"),
        ("a.m3u", "rtsp://host/a\n", "line 1 .* an address"),
        ("a.m3u", "file://server/share/a.mp3\n", "line 1 .* an address"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\n0.ts\n", "HLS.*no list of tracks"),
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


def test_a_table_may_have_other_columns_twice_and_empty_fields_behind(listed):
    text = "track_id,path,,note,note\na,x.wav,,1,2,,\nb,y.wav\n"
    assert [track_id for track_id, _ in files(listed("a.csv", text))] == ["a", "b"]


@pytest.mark.parametrize("name", ["list.m3u", "list.m3u8", "LIST.M3U"])
def test_a_playlist_is_a_list(listed, tmp_path, name):
    text = """\ufeff#EXTM3U\r
#EXTINF:123,Artist - Title\r
b/y.wav\r
\r
# a remark
/data/e.wav
file:///data/with%20blank%23.mp3
FILE://localhost/data/%C3%A9.flac
file:/data/k.ogg
100%25.wav
é?.wav
"""
    assert [path for _, path in files(listed(name, text))] == [
        f"{tmp_path}/100%25.wav",
        f"{tmp_path}/b/y.wav",
        "/data/e.wav",
        "/data/k.ogg",
        "/data/with blank#.mp3",
        "/data/é.flac",
        f"{tmp_path}/é?.wav",
    ]


def test_a_playlist_of_windows_finds_the_files_that_are_there(listed, tmp_path):
    (tmp_path / "Bj\u00f6rk").mkdir()
    (tmp_path / "Bj\u00f6rk" / "J\u00f3ga \u2013 live.mp3").touch()
    (tmp_path / "back\\slash.mp3").touch()
    lines = ["Bj\u00f6rk\\J\u00f3ga \u2013 live.mp3", "back\\slash.mp3", "gone.mp3", "f\u00fcr.mp3"]
    source = listed("list.m3u", "\r\n".join(lines).encode("cp1252"))
    assert sorted(path for _, path in files(source)) == [
        f"{tmp_path}/Bj\u00f6rk/J\u00f3ga \u2013 live.mp3",
        f"{tmp_path}/back\\slash.mp3",
        f"{tmp_path}/f\u00fcr.mp3",
        f"{tmp_path}/gone.mp3",
    ]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_a_playlist_and_a_disk_of_the_same_old_encoding_agree(listed, tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.mp3", "wb"):
        [file] = discover(listed("list.m3u", b"caf\xe9.mp3\n"))
    assert os.fsencode(file.path).endswith(b"/caf\xe9.mp3")
    [file] = discover(listed("list.m3u", b"caf\x81.mp3\n"))  # no letter of Windows, one of latin-1
    assert file.track_id == "caf\x81"


@pytest.mark.parametrize(
    "suffix",
    ["jsonl", "json", "lst", "scp", "xspf", "pls", "cue", "yaml", "yml", "parquet", "xlsx", "csv.gz", "JSONL"],
)
def test_other_lists_are_refused_by_name(listed, tmp_path, suffix):
    source = listed(f"train.{suffix}", "a.wav\n")
    with pytest.raises(
        SourceError, match=rf"train\.{suffix}' is no audio file, .* \.{suffix.lower()} is read"
    ) as caught:
        discover(source)
    for understood in (".txt", ".m3u", ".m3u8", ".csv", ".tsv"):
        assert understood in str(caught.value)
    (tmp_path / f"music.{suffix}").mkdir()
    (tmp_path / f"music.{suffix}/a.wav").touch()
    assert files(tmp_path / f"music.{suffix}")[0][0] == "a"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take both for one name")
@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.m3u8", "list.tsv"])
def test_a_list_in_another_normalisation_tells_the_name_that_is_there(listed, tmp_path, name):
    there, given = (unicodedata.normalize(form, "\u00c9clair \u00d1and\u00fa.wav") for form in ("NFD", "NFC"))
    (tmp_path / there).touch()
    before = {"list.csv": "track_id,path\n1,", "list.tsv": f"{tmp_path}\n"}.get(name, "")
    after = {"list.tsv": "\t24000"}.get(name, "")
    [file] = discover(listed(name, f"{before}{given}{after}\n"))
    with pytest.raises(AudioNotFoundError, match=r"is there, which looks the same.*E\\u0301clair N\\u0303.*NFD"):
        load_audio(file.path, 24_000)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take both for one name")
def test_a_root_in_another_normalisation_is_told(listed, tmp_path):
    (tmp_path / "S\u00e9t").mkdir()
    with pytest.raises(SourceError, match=r"is not a folder here.*looks the same.*'S\\xe9t' .NFC"):
        discover(listed("a.tsv", "Se\u0301t\na.wav\t1\n"))
