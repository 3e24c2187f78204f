"""Mean and standard deviation of the stored segments: those of numpy, whatever the blocks and the store."""

from dataclasses import replace

import numpy as np
import pytest
from samples import SPEC, features, write_store

from featurestore import FeatureStore
from featurestore.errors import SettingError, TrackNotFoundError
from featurestore.store import views

TRACKS = {f"t{n}": features(n, segments=1 + n % 4, kinds=("segments", "aggregated")) for n in range(9)}


@pytest.fixture(scope="module", params=["folder", "HDF5"])
def store(request, tmp_path_factory):
    made = write_store(tmp_path_factory.mktemp("store") / "s.zarr", TRACKS, pack=True)
    return made if request.param == "folder" else FeatureStore(made.export(made.path.with_suffix(".h5")))


@pytest.mark.parametrize("block", [1, 200, 2**26])
@pytest.mark.parametrize("layers", [None, 1, [2, 0]])
def test_they_are_those_of_the_segments(store, layers, block, monkeypatch):
    monkeypatch.setattr(views, "_BLOCK_BYTES", block)
    view = store.aggregated(layers, pooling="mean+std")
    own = [store.segments(track_id, layers)[:].astype(np.float64) for track_id in store.track_ids]
    wanted = np.array([np.concatenate([x.mean(axis=0), x.std(axis=0)], axis=-1) for x in own])
    assert (view.shape, view.dtype) == (wanted.shape, np.float32)
    np.testing.assert_array_equal(view.to_numpy(), wanted.astype(np.float32))
    np.testing.assert_array_equal(view[[7, 0, 7]], wanted[[7, 0, 7]].astype(np.float32))
    np.testing.assert_array_equal(view[..., :4], store.aggregated(layers)[:])
    np.testing.assert_array_equal(view.to_xarray().sel(track="t3").values, view[view.track_ids.index("t3")])


def test_some_tracks_and_none(store):
    assert store.aggregated(1, tracks=["t4", "t1"], pooling="mean+std").to_pandas().shape == (2, 8)
    assert not store.aggregated(1, tracks=["t4"], pooling="mean+std")[0, 4:].any()  # one segment
    assert store.aggregated(tracks=[], pooling="mean+std").to_numpy().shape == (0, 3, 8)


def test_what_cannot_be_pooled(store, tmp_path):
    with pytest.raises(SettingError, match=r"`pooling` must be one of mean, mean\+std, not 'max'"):
        store.aggregated(1, pooling="max")
    other = write_store(tmp_path / "s.zarr", {"a": features(kinds=("aggregated",))})
    with pytest.raises(TrackNotFoundError, match="'a'"):
        other.aggregated(1, pooling="mean+std").to_numpy()


def test_half_precision_is_pooled_in_full(tmp_path):
    spec = replace(SPEC, dtype="float16")
    segments = np.full((3, 3, 4), 60_000, np.float16)
    segments[0] *= -1
    store = write_store(tmp_path / "s.zarr", {"a": {"segments": segments}}, spec=spec)
    found = store.aggregated(1, pooling="mean+std")[0]
    np.testing.assert_allclose(found, [20_000] * 4 + [60_000 * np.sqrt(8 / 9)] * 4, rtol=1e-3)
