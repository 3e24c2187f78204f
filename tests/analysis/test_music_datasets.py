"""Labels of data sets that mirdata knows: trees of a few tracks, with the indexes that mirdata would download."""

import json
import logging
import sys

import numpy as np
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.analysis.labels import join
from featurestore.analysis.music_datasets import match
from featurestore.errors import MissingDependencyError, SettingError
from fs_extract.commands import run

pytestmark = pytest.mark.slow  # mirdata takes seconds to import
GENRES = ("blues", "hiphop", "rock")
GTZAN = [f"{genre}.{number:05}" for genre in GENRES for number in range(20)]


@pytest.fixture(autouse=True)
def indexes(tmp_path, monkeypatch):
    """A folder of indexes in the place of the one inside of the package."""
    from mirdata import core

    monkeypatch.setattr(core.Index, "get_path", lambda index: str(tmp_path / "indexes" / index.filename))
    (tmp_path / "indexes").mkdir()
    return tmp_path / "indexes"


@pytest.fixture
def gtzan(tmp_path, indexes):
    """Sixty tracks without any file."""
    home = tmp_path / "gtzan"
    audio = {name: f"genres/{name.split('.')[0]}/{name}.wav" for name in GTZAN}
    tracks = {x: {"audio": [audio[x], None], "beats": [None, None], "tempo": [None, None]} for x in GTZAN}
    (indexes / "gtzan_genre_index_1.0.json").write_text(json.dumps({"version": "1.0", "tracks": tracks}))
    return f"mirdata:gtzan_genre:{home}"


@pytest.fixture
def maestro(tmp_path, indexes):
    home = tmp_path / "maestro"
    home.mkdir()
    names = [f"{year}/Piece_{number}" for year in (2004, 2006) for number in range(3)]
    tracks = {x: {"audio": [f"{x}.wav", None], "midi": [f"{x}.midi", None]} for x in names}
    (indexes / "maestro_index_2.0.0.json").write_text(json.dumps({"version": "2.0.0", "tracks": tracks}))
    known = [
        {
            "midi_filename": f"{name}.midi",
            "split": ["train", "validation", "test"][number % 3],
            "year": int(name[:4]),
            "canonical_composer": f"Composer {number // 2}",
        }
        for number, name in enumerate(names)
    ]
    (home / "maestro-v2.0.0.json").write_text(json.dumps(known))
    return f"mirdata:maestro:{home}"


@pytest.mark.parametrize("rule", ["genres/{0}/{1}", "{0}/{1}", "{1}", "gtzan/{0}/{1}", "my/music/{1}"])
def test_ids_are_ends_of_paths_with_one_prefix(gtzan, rule):
    ids = [rule.format(name.split(".")[0], name) for name in GTZAN[::3]]
    joined = join([*ids, "else/where"], gtzan, missing="drop")
    assert (joined.track_ids, joined.without_label) == (ids, ["else/where"])
    assert joined.column("genre").tolist() == [x.split(".")[0].replace("hiphop", "hip-hop") for x in GTZAN[::3]]
    assert joined.unknown == sorted(set(GTZAN) - set(GTZAN[::3]))


def test_what_could_be_two_tracks_is_none():
    paths = {"one": ["audio/a/01"], "two": ["audio/b/01", "other/b/02"], "three": ["audio/c/03"]}
    assert match(["a/01", "b/01", "02", "01", "three"], paths) == {
        "a/01": "one",
        "b/01": "two",
        "02": "two",
        "three": "three",
    }
    assert match(["d/a/01", "d/b/01", "rock/03"], paths) == {"d/a/01": "one", "d/b/01": "two"}
    assert match(["x"], paths) == {}


def test_splits_of_the_data_set(maestro):
    joined = join([f"2004/Piece_{number}" for number in range(3)], maestro)
    assert joined.column("split").tolist() == ["train", "validation", "test"]
    assert joined.column("year").dtype.kind == "i"
    assert sorted(joined.columns) == ["canonical_composer", "canonical_title", "duration", "split", "year"]
    assert joined.to_pandas().loc["2004/Piece_2", "canonical_composer"] == "Composer 1"
    with pytest.raises(SettingError, match="did you mean 'split'"):
        joined.column("splits")


def test_splits_that_tracks_do_not_have(tmp_path, indexes):
    home = tmp_path / "moods"
    (home / "data").mkdir(parents=True)
    tracks = {f"track_000000{n}": {"audio": [f"audios/0{n}/{n}.mp3", None]} for n in range(3)}
    index = {"version": "1.0", "tracks": tracks}
    (indexes / "mtg_jamendo_autotagging_moodtheme_index_1.0.json").write_text(json.dumps(index))
    folder = home / "data"
    header = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
    rows = [f"{x}\tartist_1\talbum_1\t0{n}/{n}.mp3\t9.5\tmood/theme---happy\n" for n, x in enumerate(tracks)]
    (folder / "autotagging_moodtheme.tsv").write_text(header + "".join(rows))
    for split in range(5):
        below = folder / "splits" / f"split-{split}"
        below.mkdir(parents=True)
        for row, part in zip(rows, ("train", "validation", "test"), strict=True):
            (below / f"autotagging_moodtheme-{part}.tsv").write_text(header + row)
    joined = join(["01/1", "02/2"], f"mirdata:mtg_jamendo_autotagging_moodtheme:{home}", missing="drop")
    assert joined.column("split").tolist() == ["validation", "test"]


def test_only_what_is_asked_for_is_read(tmp_path, indexes):
    names = [f"{number}.LOFI" for number in range(4)]
    files = {"audio": "audio/{}.mp3", "key": "{}.key", "meta": "{}.json"}
    tracks = {x: {kind: [path.format(x), None] for kind, path in files.items()} for x in names}
    for name in names[:3]:
        (tmp_path / f"{name}.key").write_text("D major")
        (tmp_path / f"{name}.json").write_text('{"artists": [{"name": "A"}]}')
    (indexes / "giantsteps_key_index_+.json").write_text(json.dumps({"version": "+", "tracks": tracks}))
    labels = f"mirdata:giantsteps_key:{tmp_path}"
    assert join(names[:3], labels).column("key").tolist() == ["D major"] * 3
    joined = join(names, labels)
    assert joined.column("title").tolist() == names
    with pytest.raises(SettingError, match=r"key of '3.LOFI' cannot be read.*those of audio, keys, metadata that"):
        joined.column("key")
    with pytest.raises(SettingError, match=r"'artists' of .* is no text and no number, but a list"):
        joined.column("artists")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mirdata:gtzan", r"no data set 'gtzan'.*did you mean mirdata:gtzan_genre"),
        ("mirdata:", r"no data set ''"),
        ("mirdata:ballroom", r"its index cannot be read.*download\(parts\).*\['index'\]"),
    ],
)
def test_what_is_not_there_says_what_to_do(name, message):
    with pytest.raises(SettingError, match=message):
        join(["a"], name)


def test_a_store_of_other_music(gtzan):
    with pytest.raises(SettingError, match=r"none of the tracks.*'genres/blues/blues.00000'"):
        join(["a", "b"], gtzan, missing="drop")


def test_metadata_that_are_not_there(maestro, tmp_path):
    (tmp_path / "maestro" / "maestro-v2.0.0.json").unlink()
    with pytest.raises(SettingError, match=r"split of .* or those of all, midi, metadata that hold annotations"):
        join(["2004/Piece_0"], maestro).column("split")


def test_without_mirdata(gtzan, monkeypatch):
    monkeypatch.setitem(sys.modules, "mirdata", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[mirdata\]'"):
        join(GTZAN, gtzan)


def test_logging_stays_as_it_was(gtzan, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mirdata"]:
        monkeypatch.delitem(sys.modules, name)
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    with pytest.raises(SettingError, match="index"):  # of the new module, which is not in the test's folder
        join(GTZAN, gtzan)
    assert (root.level, root.handlers) == before


def test_a_probe_of_the_command_line(gtzan, tmp_path, capsys):
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=4), durable=False) as writer:
        for name in GTZAN:
            features = random.normal(size=(2, 4))
            features[1] += 5 * GENRES.index(name.split(".")[0])
            writer.put(name.replace(".", "/", 1).replace("/", f"/{name.split('.')[0]}."), {"aggregated": features})
    store = str(tmp_path / "s.zarr")
    assert FeatureStore(store).join(gtzan).column("genre")[0] == "blues"
    picture = ["--picture", str(tmp_path / "p.svg")]
    assert run(["probe", store, gtzan, "--label", "genre", "--no-groups", "--json", *picture]) == 0
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert json.loads(capsys.readouterr().out)["best"] == "1"
    page = tmp_path / "r.html"
    assert run(["report", store, "-o", str(page), "--labels", gtzan, "--label", "genre"]) == 0
    assert "hip-hop" in page.read_text()
    assert run(["probe", store, gtzan, "--label", "style", "--no-groups"]) == 2
    assert "no column 'style'" in capsys.readouterr().err
