"""Stores that were written by each version of the format are read, and written on, by this one.

`python tests/store/test_written_stores.py` writes those of this version to tests/data/stores. They are archives,
because version control keeps neither empty folders nor times of change.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import SettingError
from featurestore.store.format.metadata import FORMAT_VERSION, SEALED_VERSION
from featurestore.store.paths import StorePaths
from featurestore.store.table.table import PackedTable

STORES = Path(__file__).parent.parent / "data" / "stores"
LAYERS, DIM = (0, 3, 7), 4
VARIANTS = {
    "float32": {},
    "float16": {"dtype": "float16"},
    "zstd": {"codec": "zstd"},
    "lz4": {"codec": "lz4", "dtype": "float16"},
    "bitround": {"codec": "bitround"},
}
STARTS = [0.0, 2.5]
ATTRIBUTES = {"audio": {"path": "a/b.wav", "duration": 6.25}, "decoder": "none"}


def spec_of(variant):
    return FeatureSpec.for_arrays(layers=LAYERS, dim=DIM, **VARIANTS[variant])


def numbers(first, *shape):
    """Whole numbers that all types and codecs store exactly."""
    return (first + np.arange(np.prod(shape)) % 97).reshape(shape).astype(np.float32)


def track(number, *kinds):
    everything = {
        "raw": numbers(number, 2, len(LAYERS), 5, DIM),
        "segments": numbers(100 + number, 2, len(LAYERS), DIM),
        "aggregated": numbers(200 + number, len(LAYERS), DIM),
    }
    return {kind: everything[kind] for kind in kinds or everything}


PACKED = {
    "a/b": track(1),
    "replaced": track(2),
    "removed": track(3),
    "é": track(4, "segments", "aggregated"),
    "x" * 300: track(5, "aggregated"),
}
EXPECTED = {
    **{track_id: arrays for track_id, arrays in PACKED.items() if track_id != "removed"},
    "replaced": track(6, "raw", "aggregated"),
    "later": track(7),
}


SEALED = [variant for variant, settings in VARIANTS.items() if "codec" not in settings]


def write(path, variant, *, seal=None):
    """A store in which some tracks are packed, or sealed; one was replaced since, one removed and one added."""
    with StoreWriter(path, spec=spec_of(variant), overwrite=True) as writer:
        for track_id, arrays in PACKED.items():
            with writer.track(track_id, kinds=tuple(arrays), attributes=ATTRIBUTES) as open_track:
                if len(arrays) > 1:
                    open_track.append(raw=arrays.get("raw"), segments=arrays["segments"], starts=STARTS)
                open_track.set_aggregated(arrays["aggregated"])
        writer.pack(seal=seal)
        for track_id in ("replaced", "later"):
            writer.put(track_id, EXPECTED[track_id])
        writer.remove("removed")


def written():
    return sorted(STORES.glob("format-*/*.tar.gz"))


@pytest.fixture(params=written(), ids=lambda path: f"{path.parent.name}, {path.name.split('.')[0]}")
def store(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return FeatureStore(tmp_path / "store.zarr"), request.param.name.split(".")[0]


def assert_holds(store, expected, dtype):
    for track_id, arrays in expected.items():
        assert store.has(track_id, list(arrays))
        found = {"aggregated": np.asarray(store.aggregated(tracks=[track_id]))[0]}
        found |= {kind: np.asarray(getattr(store, kind)(track_id)) for kind in arrays if kind != "aggregated"}
        for kind, array in arrays.items():
            assert found[kind].dtype == dtype
            assert np.array_equal(found[kind], array), (track_id, kind)
    rows = [expected[track_id]["aggregated"] for track_id in store.track_ids]
    assert np.array_equal(store.aggregated(), rows)
    assert np.array_equal(store.aggregated(layer=3), np.array(rows)[:, 1])


def test_there_are_stores_of_every_version_and_variant():
    versions = [f"format-{version}" for version in range(1, SEALED_VERSION + 1)]
    assert {path.parent.name for path in written()} == set(versions)
    assert {path.name.split(".")[0] for path in written()} >= VARIANTS.keys()
    assert all(path.stat().st_size < 40_000 for path in written())


def test_it_is_read(store):
    store, variant = store
    assert store.spec == spec_of(variant)
    assert sorted(store.track_ids) == sorted(EXPECTED)
    assert_holds(store, EXPECTED, np.dtype(store.spec.dtype))
    assert store.verify(deep=True).problems == ()
    assert np.array_equal(store.segments("a/b").starts, STARTS)
    provenance = store.provenance("a/b")
    assert {name: provenance[name] for name in ATTRIBUTES} == ATTRIBUTES
    array = zarr.open_array(store.path / "raw" / "a=2fb", mode="r")
    assert np.array_equal(array[...], EXPECTED["a/b"]["raw"])


def version_of(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["featurestore"]["format"]


@pytest.mark.slow
def test_it_is_sealed_and_unsealed(store):
    store, variant = store
    if variant not in SEALED:
        with pytest.raises(SettingError, match="compressed"):
            store.pack(seal=True)
        return
    for seal in (True, False):
        store.pack(seal=seal)
        assert version_of(store.path) == SEALED_VERSION
        assert store.info()["sealed"] == (len(EXPECTED) if seal else 0)
        assert_holds(store, EXPECTED, np.dtype(store.spec.dtype))
        assert store.verify(deep=True).problems == ()
    assert np.array_equal(store.segments("a/b").starts, STARTS)


def test_its_packed_table_is_used_or_replaced(store):
    store, _ = store
    with StorePaths(store.path).open() as root:
        table = PackedTable.open(root, store.spec)
    if version_of(store.path) == 1:
        assert table is None
        assert store.info()["packed"] == 0
        store.pack()
        assert version_of(store.path) == FORMAT_VERSION
        assert store.info()["packed"] == len(store) == len(EXPECTED)
        assert_holds(store, EXPECTED, np.dtype(store.spec.dtype))
        assert store.verify(deep=True).problems == ()
        return
    assert table.track_ids == sorted(PACKED)
    assert store.info()["packed"] == len(PACKED) - 2
    group = zarr.open_group(store.path / "packed", mode="r")
    row = group["track_id"][:].tolist().index("a/b")
    assert np.array_equal(group["features"][row], EXPECTED["a/b"]["aggregated"])


def test_it_is_written_on(store):
    store, variant = store
    with StoreWriter(store.path, spec=spec_of(variant), overwrite=True) as writer:
        writer.put("new", track(8))
        writer.put("é", track(9))
        writer.remove("later")
        assert writer.pack()
    expected = {**EXPECTED, "new": track(8), "é": track(9)}
    del expected["later"]
    store = FeatureStore(store.path)
    assert store.info()["packed"] == len(store) == len(expected)
    assert_holds(store, expected, np.dtype(store.spec.dtype))
    assert store.verify(deep=True).problems == ()


def main():
    import tempfile

    versions = {FORMAT_VERSION: VARIANTS, SEALED_VERSION: SEALED}
    for version, variant in ((version, variant) for version, names in versions.items() for variant in names):
        target = STORES / f"format-{version}" / f"{variant}.tar.gz"
        if target.exists():
            raise SystemExit(f"{target} is there: what was written once is never written anew")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "store.zarr", variant, seal=version == SEALED_VERSION or None)
            with tarfile.open(target, "w:gz") as archive:
                archive.add(Path(folder) / "store.zarr", "store.zarr")


if __name__ == "__main__":
    main()
