"""The calls of another pipeline, over a store."""

import numpy as np
import pytest

from featurestore import (
    FeatureSpec,
    StoreWriter,
    features_exist,
    features_exist_for_types,
    load_features,
    load_selected_features,
)
from featurestore.errors import NotAStoreError
from featurestore.keywords import warn_of_earlier_variables


@pytest.fixture
def store(tmp_path):
    raw = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=3, dim=4)) as writer:
        writer.put("d/whole", {"raw": raw, "segments": raw.mean(2), "aggregated": raw.mean((0, 2))})
        writer.put("part", {"segments": raw.mean(2)})
    return tmp_path / "s.zarr"


def test_features_come_as_they_were_written(store):
    raw = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    found = load_features("music/whole.wav", store, dataset="d")
    assert list(found) == ["raw", "segments", "aggregated"]
    np.testing.assert_array_equal(found["raw"], raw)
    np.testing.assert_array_equal(found["segments"], raw.mean(2))
    np.testing.assert_array_equal(found["aggregated"], raw.mean((0, 2)))


def test_none_stands_for_what_is_missing_as_it_did(store, tmp_path):
    assert load_features("part.wav", store) is None
    assert list(load_selected_features("x.wav", str(store), ["segments"], track_id="part")) == ["segments"]
    assert load_selected_features("absent.wav", store, ["aggregated"]) is None
    assert load_features("part.wav", tmp_path / "no.zarr") is None


def test_features_exist(store, tmp_path):
    assert features_exist("part.wav", store)
    assert not features_exist("part.wav", store, dataset="d")
    assert features_exist_for_types("part.wav", store, ["segments", "aggregated"])
    assert not features_exist_for_types("part.wav", store, iter(["raw"]))
    assert not features_exist("part.wav", tmp_path / "no.zarr")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(NotAStoreError):
        features_exist("part.wav", tmp_path / "other")


def test_variables_of_the_environment_are_named_with_those_to_use(monkeypatch, caplog):
    warn_of_earlier_variables()
    assert not caplog.records
    monkeypatch.setenv("MESS_BATCH_SIZE", "8")
    warn_of_earlier_variables()
    assert "MESS_BATCH_SIZE is not read: fs-extract reads FEATURESTORE_BATCH_SIZE" in caplog.text
