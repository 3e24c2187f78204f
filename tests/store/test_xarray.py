"""What xarray's own users do with a store and its views: copy, convert, combine and label, without a warning."""

import numpy as np
import pytest
import xarray as xr
from samples import SPEC, write_store

from featurestore import StoreWriter

STARTS = {"a": [0.0], "b/x": [0.0, 2.5, 5.0], "c": [0.0, 2.5]}


def numbers(track_id):
    return np.random.default_rng(len(STARTS[track_id])).normal(size=(len(STARTS[track_id]), 3, 4)).astype("f4")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("xarray") / "store.zarr"
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for track_id, starts in STARTS.items():
            with writer.track(track_id, kinds=("segments",)) as track:
                track.append(segments=numbers(track_id), starts=starts)
        writer.pack()
    return write_store(path, {})


@pytest.fixture
def dataset(store):
    return xr.open_zarr(store.path / "packed")


def test_the_table_is_written_to_zarr_and_more_is_appended(dataset, tmp_path):
    dataset.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    assert xr.open_zarr(tmp_path / "copy.zarr", consolidated=False).identical(dataset)
    dataset.isel(track=slice(1, 3)).to_zarr(tmp_path / "copy.zarr", append_dim="track", consolidated=False)
    assert xr.open_zarr(tmp_path / "copy.zarr", consolidated=False).sizes["track"] == 5


@pytest.mark.slow
def test_a_table_of_many_chunks_is_written_to_zarr(tmp_path):
    tracks = {f"{n:03}": {"aggregated": np.full((3, 4), n, "f4")} for n in range(300)}
    store = write_store(tmp_path / "store.zarr", tracks, pack=True)
    dataset = xr.open_zarr(store.path / "packed")
    assert len(dataset.chunks["track"]) > 1
    dataset.to_zarr(tmp_path / "copy.zarr", consolidated=False)
    assert xr.open_zarr(tmp_path / "copy.zarr", consolidated=False).identical(dataset)


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
@pytest.mark.slow
def test_the_table_and_views_are_written_to_netcdf(store, dataset, tmp_path, engine):
    pytest.importorskip(engine)
    dataset.load().to_netcdf(tmp_path / "table.nc", engine=engine)
    with xr.open_dataset(tmp_path / "table.nc", engine=engine) as found:
        assert np.array_equal(found.features, dataset.features)
        assert found.track_id.values.tolist() == ["a", "b/x", "c"]
        assert found.attrs == dataset.attrs
    for number, view in enumerate([store.aggregated(), store.segments(layer=1), store.segments("b/x")]):
        view.to_xarray().to_netcdf(tmp_path / f"{number}.nc", engine=engine)
        with xr.open_dataarray(tmp_path / f"{number}.nc", engine=engine) as found:
            assert found.name == "features"
            assert np.array_equal(found, view)


def test_views_are_written_to_zarr(store, tmp_path):
    for number, view in enumerate([store.aggregated(), store.segments(layer=1), store.segments("b/x")]):
        view.to_xarray().to_dataset().to_zarr(tmp_path / f"{number}.zarr", consolidated=False)
        found = xr.open_zarr(tmp_path / f"{number}.zarr", consolidated=False).features
        assert np.array_equal(found, view)


def test_a_store_is_a_tree_of_datasets(store):
    tree = xr.open_datatree(store.path, engine="zarr", consolidated=False)
    assert set(tree.children) == {"raw", "segments", "aggregated", "packed"}
    assert tree["packed/features"].shape == (3, 3, 4)
    assert tree["segments/b=2fx"].dims == ("segment_b=2fx", "layer", "feature")
    assert np.array_equal(tree["segments/b=2fx"], numbers("b/x"))
    groups = xr.open_groups(store.path, engine="zarr", consolidated=False)
    assert set(groups) == {"/", "/raw", "/segments", "/aggregated", "/packed"}
    segments = xr.open_zarr(store.path, group="segments", consolidated=False)
    assert np.array_equal(segments["c"], numbers("c"))


def test_segments_of_many_tracks_have_their_labels(store):
    array = store.segments(layer=1).to_xarray()
    assert array.name == "features"
    assert array.dims == ("row", "feature")
    assert array.coords["track"].values.tolist() == ["a", "b/x", "b/x", "b/x", "c", "c"]
    assert array.coords["start"].values.tolist() == [0.0, 0.0, 2.5, 5.0, 0.0, 2.5]
    means = array.groupby("track").mean()
    assert np.allclose(means.sel(track="b/x"), numbers("b/x")[:, 1].mean(axis=0))
    assert np.array_equal(array.where(array.start == 5.0, drop=True)[0], numbers("b/x")[2, 1])


@pytest.mark.parametrize(
    ("view", "coords"),
    [
        (lambda store: store.aggregated(), {"track", "layer"}),
        (lambda store: store.aggregated(layer=2), {"track"}),
        (lambda store: store.segments("c"), {"segment", "layer"}),
        (lambda store: store.segments(), {"track", "start", "layer"}),
    ],
)
def test_arrays_are_named_and_labelled_alike(store, view, coords):
    arrays = [view(store).to_xarray() for _ in range(2)]
    assert [array.name for array in arrays] == ["features"] * 2
    assert set(arrays[0].coords) == coords == set(view(store).coords)
    assert arrays[0].identical(arrays[1])


def test_tables_of_two_stores_are_combined(store, dataset, tmp_path):
    other = write_store(tmp_path / "other.zarr", {"z": {"segments": numbers("c")}}, pack=True)
    both = xr.open_mfdataset(
        [store.path / "packed", other.path / "packed"],
        engine="zarr",
        combine="nested",
        concat_dim="track",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="drop",
    )
    assert both.track_id.values.tolist() == ["a", "b/x", "c", "z"]
    assert np.array_equal(both.features[:3], dataset.features)


@pytest.mark.slow
def test_what_does_not_keep_to_the_chunks_is_written_to_zarr_too(store, dataset, tmp_path):
    """As xarray has it for any Zarr store: `align_chunks` lets dask's chunks follow those of what was read."""
    spec = store.spec
    more = {f"m{n:03}": {"aggregated": np.full((3, 4), n, np.float32)} for n in range(300)}
    other = xr.open_zarr(write_store(tmp_path / "other.zarr", more, spec=spec, pack=True).path / "packed")
    segments = xr.open_zarr(store.path / "segments", consolidated=False)
    first, second = (segments[key].rename("features") for key in ("b=2fx", "c"))
    tracks = [array.rename({array.dims[0]: "segment"}) for array in (first, second)]
    for number, combined in enumerate(
        [
            xr.concat([dataset, other], dim="track", data_vars="minimal"),
            xr.concat([other, dataset], dim="track", data_vars="minimal").sortby("track_id"),
            other.isel(track=slice(7, None, 3)),
            segments,
            xr.merge([segments[["a"]], segments[["c"]]]),
            xr.concat(tracks, dim="segment").to_dataset(),
        ]
    ):
        path = tmp_path / f"{number}.zarr"
        for label in combined.coords.values():  # text in dask arrays is slow, and some releases warn of it
            label.load()
        combined.to_zarr(path, consolidated=False, align_chunks=True)
        assert xr.open_zarr(path, consolidated=False).equals(combined)


def test_views_of_two_tracks_are_written_to_zarr_as_one(store, tmp_path):
    views = [store.segments(track_id).to_xarray() for track_id in ("b/x", "c")]
    combined = xr.concat(views, dim="segment").chunk(segment=-1)  # dask's chunks were of 3 and 2 rows
    combined.to_dataset().to_zarr(tmp_path / "both.zarr", consolidated=False)
    found = xr.open_zarr(tmp_path / "both.zarr", consolidated=False).features
    assert np.array_equal(found, np.concatenate([numbers("b/x"), numbers("c")]))
