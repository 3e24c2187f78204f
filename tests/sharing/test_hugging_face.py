"""Tables of features as data sets of Hugging Face."""

import sys

import numpy as np
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import MissingDependencyError, SettingError
from featurestore.sharing import files

pytestmark = pytest.mark.slow  # datasets takes a second to import


@pytest.fixture(params=["float32", "float16"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_ROWS", 7)
    spec = FeatureSpec.for_arrays(layers=3, dim=4, dtype=request.param)
    with StoreWriter(tmp_path / "s.zarr", spec=spec, durable=False) as writer:
        for number in range(20):
            segments = np.random.default_rng(number).normal(size=(1 + number % 3, 3, 4))
            writer.put(f"t{number:02}", {"segments": segments}, starts=(2.5 * np.arange(len(segments))).tolist())
    return FeatureStore(tmp_path / "s.zarr")


def test_rows_are_those_of_the_views(store):
    found = store.to_hf_dataset(layer=[2, 0])
    assert found.column_names == ["track_id", "layer2", "layer0"]
    assert list(found["track_id"]) == store.track_ids
    np.testing.assert_array_equal(found.with_format("numpy")["layer0"][:], store.aggregated(0)[:])
    rows = store.segments(layer=1)
    found = store.to_hf_dataset("segments", layer=1)
    np.testing.assert_array_equal(found.with_format("numpy")["layer1"][:], rows[:])
    assert list(found["start"]) == rows.row_starts.tolist()
    assert found.with_format("torch")[0]["layer1"].shape == (4,)


def test_labels_are_classes_or_numbers(store):
    genres = {track_id: ["rock", "jazz"][number % 2] for number, track_id in enumerate(store.track_ids[:5])}
    found = store.to_hf_dataset("segments", layer=1, labels=genres, missing="drop")
    assert found.features["label"].names == ["jazz", "rock"]
    names = [found.features["label"].int2str(number) for number in found["label"]]
    assert names == [genres[track_id] for track_id in found["track_id"]]
    assert set(found.train_test_split(0.4, stratify_by_column="label", seed=0)) == {"train", "test"}
    tempo = store.to_hf_dataset(layer=1, labels=dict.fromkeys(store.track_ids, 120.5))
    assert set(tempo["label"]) == {120.5}


def test_what_cannot_be_had(store, monkeypatch):
    with pytest.raises(SettingError, match="not 'all'"):
        store.to_hf_dataset("all")
    with pytest.raises(SettingError, match="no layer 7"):
        store.to_hf_dataset(layer=7)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[datasets\]'"):
        store.to_hf_dataset()
