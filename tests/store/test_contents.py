"""Hours and bytes of a store: counted, or of a large one estimated."""

import os

import numpy as np
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store import contents as module

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path):
    with StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8), durable=False) as writer:
        for number in range(12):
            about = {"audio": {"duration": 600.0}} if number else {}
            writer.put(f"t{number:02}", {"segments": np.ones((3, 2, 8))}, attributes=about)
        writer.pack()
    return FeatureStore(tmp_path / "s.zarr")


def below(folder):
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def test_everything_is_counted(store):
    found = store.contents()
    assert found["hours"] == pytest.approx(11 / 6)  # one track does not say
    assert found["looked_at"] == 12
    assert set(found["bytes"]) == {"segments", "aggregated", "packed"}
    for kind, size in found["bytes"].items():
        assert size == below(store.path / kind) - (store.path / kind / "zarr.json").stat().st_size


def test_of_many_tracks_some_are_looked_at(store, monkeypatch):
    counted = store.contents()
    monkeypatch.setattr(module, "MOST", 5)
    found = store.contents()
    assert found["looked_at"] == 4
    assert found["hours"] == pytest.approx(9 / 6)  # of t00, t03, t06 and t09, of which one does not say
    assert found["bytes"]["segments"] == pytest.approx(counted["bytes"]["segments"], rel=0.01)


def test_a_file_has_one_size(store, tmp_path):
    pytest.importorskip("h5py")
    store.export(tmp_path / "s.h5", level="aggregated")
    found = FeatureStore(tmp_path / "s.h5").contents()
    assert found["bytes"] == {"file": (tmp_path / "s.h5").stat().st_size}


def test_an_empty_store_has_nothing(tmp_path):
    StoreWriter(tmp_path / "s.zarr", spec=FeatureSpec.for_arrays(layers=1, dim=2)).close()
    assert FeatureStore(tmp_path / "s.zarr").contents() == {"hours": None, "bytes": {}, "looked_at": 0}
