"""Joining tracks and labels: in the order of the store, and nothing is left out unless that is asked for."""

import sys

import numpy as np
import pandas
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.analysis.labels import join
from featurestore.errors import MissingDependencyError, SettingError

IDS = ["b", "a", "c/ü"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("\ufefftrack_id,genre,bpm\nc/ü,folk,90\na,rock,120.5\nb,jazz,1e2\nx,none,1\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "frame", "indexed frame", "mapping"])
def test_labels_come_in_the_order_of_the_tracks(table, kind):
    frame = pandas.read_csv(table)
    given = {
        "csv": table,
        "frame": frame,
        "indexed frame": frame.set_index("track_id"),
        "mapping": frame.set_index("track_id").to_dict("index"),
    }[kind]
    joined = join(IDS, given)
    assert joined.track_ids == IDS
    assert joined.column("genre").tolist() == ["jazz", "rock", "folk"]
    assert joined.column("bpm").tolist() == [100, 120.5, 90]
    assert joined.unknown == ["x"]
    assert joined.to_pandas().index.tolist() == IDS


def test_a_mapping_of_values():
    assert join(["a", "b"], {"b": 1, "a": 2}).column("label").tolist() == [2, 1]


def test_a_track_without_a_label_is_an_error_or_left_out(table):
    with pytest.raises(SettingError, match=r"1 of 4 tracks have no label, such as 'd'.*missing='drop'"):
        join([*IDS, "d"], table)
    joined = join([*IDS, "d"], table, missing="drop")
    assert (joined.track_ids, joined.without_label) == (IDS, ["d"])
    with pytest.raises(SettingError, match="no label"):
        join(["d"], table, missing="drop")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("track_id,genre\na,rock\na,jazz\n", "'a' twice"),
        ("id,genre\na,rock\n", "no column 'track_id', only id, genre"),
        ("track_id,genre\na,rock,x\n", "row 2"),
        ("track_id,genre\na\n", "row 2"),
        ("", "1 of 1 tracks"),
        (b"track_id,genre\na,\xff\n", "cannot be read"),
    ],
)
def test_tables_that_are_wrong(tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError, match=message):
        join(["a"], path)


def test_classes_that_only_python_takes_for_numbers_are_text(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("track_id,sector\na,1_2\nb,12\nc/ü,1_0e1\n")
    assert join(IDS, path).column("sector").tolist() == ["12", "1_2", "1_0e1"]


def test_names_that_do_not_exist(table):
    with pytest.raises(SettingError, match="did you mean 'genre'"):
        join(IDS, table).column("genres")
    with pytest.raises(SettingError, match="cannot be read"):
        join(IDS, "absent.csv")
    with pytest.raises(SettingError, match="not list"):
        join(IDS, [1])
    with pytest.raises(SettingError, match="error, drop"):
        join(IDS, table, missing="ignore")


def test_missing_values_of_a_mapping_are_none():
    assert join(["a", "b"], {"a": {"x": 1}, "b": {"y": 2}}).column("x").tolist() == [1, None]
    assert join(["a"], {"a": np.int64(3)}).column("label").tolist() == [3]


def test_tables_and_items_say_which_package_they_need(tmp_path, monkeypatch):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=3)) as writer:
        writer.put("a", {"aggregated": np.zeros((2, 3), np.float32)})
    store = FeatureStore(tmp_path / "s.zarr")
    dataset = store.to_torch_dataset(layer=1)
    for package in ("pandas", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match="pip install pandas"):
        store.join({"a": 1}).to_pandas()
    with pytest.raises(MissingDependencyError, match=r"torch is needed.*featurestore\[extract\]"):
        dataset[0]
