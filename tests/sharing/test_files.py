"""Features in the files of other tools."""

import csv

import numpy as np
import pyarrow.parquet
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import SettingError
from featurestore.sharing.files import import_npy, npy_tracks
from fs_extract.commands import run

SPEC = FeatureSpec.for_arrays(layers=3, dim=4)


@pytest.fixture
def store(tmp_path):
    with StoreWriter(tmp_path / "s.zarr", spec=SPEC, durable=False) as writer:
        for number, track_id in enumerate(["a", "x/b ü"]):
            with writer.track(track_id, kinds=["raw", "segments"]) as track:
                raw = np.random.default_rng(number).normal(size=(2 + number, 3, 5, 4)).astype(np.float32)
                track.append(raw=raw, starts=(2.5 * np.arange(2 + number)).tolist())
    return FeatureStore(tmp_path / "s.zarr")


def test_a_tree_of_npy(store, tmp_path):
    out = store.export(tmp_path / "tree", "npy", level="all", layers=[0, 2])
    assert npy_tracks(out) == ["a", "x/b ü"]
    for track_id in store.track_ids:
        found = import_npy(out, track_id, layers=2, dim=4)
        np.testing.assert_array_equal(found["raw"], store.raw(track_id, [0, 2])[:])
        np.testing.assert_array_equal(found["segments"], store.segments(track_id, [0, 2])[:])
        np.testing.assert_array_equal(found["aggregated"], store.aggregated([0, 2], tracks=[track_id])[0])
    with pytest.raises(SettingError, match="not raw of these layers"):
        import_npy(out, "a", layers=3, dim=4)


def test_files_may_have_long_names(tmp_path):
    track_id = "x" * 240
    with StoreWriter(tmp_path / "s.zarr", spec=SPEC, durable=False) as writer:
        writer.put(track_id, {"aggregated": np.ones((3, 4))})
    out = FeatureStore(tmp_path / "s.zarr").export(tmp_path / "tree", "npy")
    assert npy_tracks(out) == [track_id]


def test_arrays_that_hold_code_are_refused(tmp_path):
    (tmp_path / "aggregated").mkdir()
    np.save(tmp_path / "aggregated" / "a.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(SettingError, match="cannot be read as an array"):
        import_npy(tmp_path, "a", layers=1, dim=1)


@pytest.mark.parametrize("track_id", ["../a", "/a", "a//b", "x" * 300])
def test_ids_that_are_no_paths_are_refused(tmp_path, track_id):
    with StoreWriter(tmp_path / "s.zarr", spec=SPEC, durable=False) as writer:
        writer.put(track_id, {"aggregated": np.ones((3, 4))})
    with pytest.raises(SettingError, match="is no path for its files"):
        FeatureStore(tmp_path / "s.zarr").export(tmp_path / "tree", "npy")
    assert not (tmp_path / "a.npy").exists()


@pytest.mark.parametrize("level", ["aggregated", "segments"])
def test_tables(store, tmp_path, level):
    view = store.aggregated([0, 2]) if level == "aggregated" else store.segments(layer=[0, 2])
    ids = view.coords["track"].tolist()
    table = pyarrow.parquet.read_table(store.export(tmp_path / "t.parquet", level=level, layers=[0, 2]))
    assert table["track_id"].to_pylist() == ids
    for position, layer in enumerate((0, 2)):
        np.testing.assert_array_equal(np.array(table[f"layer{layer}"].to_pylist(), np.float32), view[:, position])
    with open(store.export(tmp_path / "t.csv", level=level, layers=[0, 2]), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["track_id"] for row in rows] == ids
    found = np.array([[row[f"layer2_{number}"] for number in range(4)] for row in rows], np.float32)
    np.testing.assert_array_equal(found, view[:, 1])
    if level == "segments":
        np.testing.assert_array_equal(table["start"].to_numpy(), view.row_starts)
        assert [float(row["start"]) for row in rows] == view.row_starts.tolist()


def test_formats_that_cannot_be_had(store, tmp_path):
    with pytest.raises(SettingError, match="does not say its format"):
        store.export(tmp_path / "x.bin")
    with pytest.raises(SettingError, match="hdf5, netcdf, parquet"):
        store.export(tmp_path / "x.bin", "matlab")
    with pytest.raises(SettingError, match="export raw to hdf5 or npy"):
        store.export(tmp_path / "x.csv", level="all")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_the_command(store, tmp_path, capsys):
    (tmp_path / "ids").write_text("a\n")
    out = tmp_path / "out.h5"
    assert run(["export", str(store.path), str(out), "--tracks", str(tmp_path / "ids"), "--layers", "1"]) == 0
    assert capsys.readouterr().out == f"1 tracks are in {out}\n"
    assert run(["ls", str(out)]) == 0
    assert capsys.readouterr().out == "a\n"
    assert run(["similar", str(store.path), "a", "--layer", "1"]) == 0
    assert capsys.readouterr().out.endswith("x/b ü\n")
    assert run(["pack", str(out)]) == 2
