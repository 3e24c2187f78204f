"""zarr-python, xarray and tensorstore read bundles, and nothing warns."""

import json

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from samples import SPEC, features, write_store

from featurestore import FeatureStore, StoreWriter

pytestmark = pytest.mark.slow

TRACKS = {
    name: features(seed, segments=seed + 1, kinds=("segments", "aggregated")) for seed, name in enumerate("abcde")
}
ROWS = np.concatenate([arrays["segments"] for arrays in TRACKS.values()])
MEANS = np.stack([arrays["aggregated"] for arrays in TRACKS.values()])


@pytest.fixture
def bundle(path, monkeypatch):
    """Of all tracks, in shards of eight rows and chunks of two."""
    monkeypatch.setattr("featurestore.store.bundles.layout.CHUNK_BYTES", 32)
    monkeypatch.setattr("featurestore.store.bundles.layout.SHARD_BYTES", 384)
    write_store(path, TRACKS)
    with StoreWriter(path, spec=SPEC) as writer:
        writer.pack(seal=True)
    (found,) = (folder for folder in (path / "bundles").iterdir() if len(folder.name) == 32)
    return found


def test_zarr_reads_what_is_in_a_bundle(path, bundle):
    group = zarr.open_group(path, mode="r")
    members = dict(group.members(max_depth=None))
    arrays = {name.rsplit("/")[-1]: found for name, found in members.items() if bundle.name in name}
    assert np.array_equal(arrays["segments"][...], ROWS)
    assert np.array_equal(arrays["aggregated"][...], MEANS)
    assert arrays["track_id"][...].tolist() == list(TRACKS)
    assert arrays["row_splits"][...].tolist() == [0, 1, 3, 6, 10, 15]
    assert np.isnan(arrays["start"][...]).all()
    known = json.loads(arrays["attributes"][...].tolist()[2])["attributes"]
    assert known["track_id"] == "c"
    revision = FeatureStore(path).provenance("c")["revision"]
    assert arrays["revision"][2].tobytes().hex() == revision == known["revision"]
    assert bundle.name in str(group.tree())


@pytest.mark.parametrize("options", [{}, {"chunks": None}])
def test_xarray_opens_a_bundle(bundle, options):
    dataset = xr.open_zarr(bundle, **options)
    assert np.array_equal(dataset.segments, ROWS)
    assert np.array_equal(dataset.set_index(track="track_id").aggregated.sel(track="d"), TRACKS["d"]["aggregated"])


def test_xarray_opens_the_whole_store(path, bundle):
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    assert np.array_equal(tree[f"bundles/{bundle.name}"].segments, ROWS)


def test_tensorstore_reads_the_shards(bundle):
    for name, expected in {"segments": ROWS, "aggregated": MEANS}.items():
        place = {"driver": "file", "path": str(bundle / name)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
        assert np.array_equal(array.read().result(), expected)
