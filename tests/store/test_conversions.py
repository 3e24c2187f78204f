"""Views in the words of xarray, dask and torch."""

import pickle
import sys

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from samples import features, write_store

from featurestore import FeatureSpec, StoreWriter
from featurestore.errors import MissingDependencyError, StoreError

TRACKS = {track_id: features(seed, segments=2 + seed) for seed, track_id in enumerate(["a", "b", "c"])}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("interop") / "store.zarr", TRACKS, pack=True)


@pytest.fixture(
    params=[
        lambda store: store.aggregated(),
        lambda store: store.aggregated(layer=1),
        lambda store: store.aggregated(layer=[2, 1], tracks=["c", "a"]),
        lambda store: store.aggregated(tracks=[]),
        lambda store: store.segments("b"),
        lambda store: store.segments(layer=0),
        lambda store: store.raw("c"),
        lambda store: store.raw("a", layer=2),
    ],
    ids=["all", "one layer", "some", "none", "segments", "ragged", "raw", "raw, one layer"],
)
def view(request, store):
    return request.param(store)


@pytest.mark.slow
def test_dask_arrays_are_read_when_they_are_computed(view):
    for chunks in ("auto", 1, -1):
        array = view.to_dask(chunks) if view.shape[0] else view.to_dask()
        assert (array.shape, array.dtype) == (view.shape, view.dtype)
        found = array.compute(scheduler="synchronous")
        assert isinstance(found, np.ndarray)
        assert np.array_equal(found, view)
    assert np.array_equal(view.to_dask()[..., :2].mean(axis=-1).compute(), np.asarray(view)[..., :2].mean(axis=-1))


@pytest.mark.slow
def test_dask_workers_read_for_themselves(store):
    view = store.segments(layer=1)
    with dask.config.set(scheduler="processes", num_workers=2):
        assert np.array_equal(view.to_dask(chunks=(2, 4)).compute(), view)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["aggregated", "segments"])
def test_the_graph_of_all_tracks_does_not_carry_their_ids(tmp_path, kind):
    tracks = {f"{number:03}{'x' * 100}": features(number) for number in range(200)}
    store = write_store(tmp_path / "s", tracks, pack=True)
    array = getattr(store, kind)(layer=1).to_dask()
    read = pickle.loads(pickled := pickle.dumps(array))
    assert len(pickled) < 8_000
    assert np.array_equal(read.compute(scheduler="synchronous"), array.compute(scheduler="synchronous"))
    some = pickle.loads(pickle.dumps(getattr(store, kind)(layer=1, tracks=list(tracks)[:2]).to_dask()))
    with StoreWriter(store.path, spec=store.spec) as writer:
        writer.put("another", features(1))
    with pytest.raises(StoreError, match="have changed since this array was made"):
        pickle.loads(pickled).compute(scheduler="synchronous")
    assert np.array_equal(
        some.compute(scheduler="synchronous"), array[: len(some)].compute(scheduler="synchronous")
    )


def test_data_arrays_have_names_and_labels(view):
    array = view.to_xarray()
    assert isinstance(array, xr.DataArray)
    assert array.dims == view.dims
    assert set(array.coords) == set(view.coords)
    assert np.array_equal(array.values, view)
    if "layer" in array.dims:
        layer = int(array.layer[0])
        assert np.array_equal(array.sel(layer=layer), np.take(np.asarray(view), 0, view.dims.index("layer")))


def test_tracks_are_selected_by_id(store):
    array = store.aggregated(layer=1).to_xarray()
    assert np.array_equal(array.sel(track="b"), TRACKS["b"]["aggregated"][1])


def test_tensors_are_read_at_once(view):
    tensor = view.to_torch()
    assert tensor.dtype == torch.float32
    assert tuple(tensor.shape) == view.shape
    assert np.array_equal(tensor.numpy(), view)
    tensor += 1  # it is the caller's


def test_tensors_of_float16(tmp_path):
    spec = FeatureSpec.for_arrays(layers=3, dim=4, dtype="float16")
    store = write_store(tmp_path / "s", {"a": features(0, spec=spec)}, spec=spec)
    assert store.raw("a").to_torch().dtype == torch.float16


@pytest.mark.parametrize(
    ("package", "convert", "extra"),
    [
        ("dask.array", lambda view: view.to_dask(), "xarray"),
        ("xarray", lambda view: view.to_xarray(), "xarray"),
        ("torch", lambda view: view.to_torch(), "extract"),
    ],
)
def test_a_missing_package_names_the_extra(store, monkeypatch, package, convert, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'featurestore\[{extra}\]'"):
        convert(store.aggregated())
