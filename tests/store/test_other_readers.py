"""zarr-python, xarray, dask and tensorstore read a store, and nothing warns."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from samples import SPEC, features, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.spec import DIMS

TRACKS = {
    "a/b": features(0),
    "é": features(1, segments=3),
    "x" * 300: features(2, kinds=["segments", "aggregated"]),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("others") / "store.zarr"
    write_store(path, TRACKS, pack=True)
    return path


def test_zarr_finds_every_group_and_array(path):
    group = zarr.open_group(path, mode="r")
    assert group.attrs["featurestore"]["fingerprint"] == SPEC.fingerprint
    assert {"raw", "segments", "aggregated", "packed"} <= set(group.group_keys())
    members = dict(group.members(max_depth=None))
    assert sum(isinstance(member, zarr.Array) for member in members.values()) == 8 + 3 + 1
    tree = str(group.tree())
    assert "aggregated" in tree
    assert "a=2fb" in tree


def test_zarr_reads_what_was_written(path):
    for track_id, arrays in TRACKS.items():
        for kind, values in arrays.items():
            (key,) = (
                p.name
                for p in (path / kind).iterdir()
                if p.is_dir() and zarr.open_array(p, mode="r").attrs["track_id"] == track_id
            )
            array = zarr.open_array(path, path=f"{kind}/{key}", mode="r")
            assert array[...].tobytes() == values.tobytes()
            key = array.path.rsplit("/")[-1]
            own = {"segment": f"segment_{key}", "frame": f"frame_{key}"}
            assert array.metadata.dimension_names == tuple(own.get(name, name) for name in DIMS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"group": "packed", "consolidated": False}])
def test_xarray_reads_the_packed_table(path, options):
    dataset = xr.open_zarr(path if options else path / "packed", **options)
    assert dataset.features.dims == ("track", "layer", "feature")
    assert dataset.layer.values.tolist() == [0, 1, 2]
    assert dataset.track_id.values.tolist() == FeatureStore(path).track_ids
    assert "track_id" in dataset.coords
    for track_id, arrays in TRACKS.items():
        row = dataset.features.isel(track=int(np.flatnonzero(dataset.track_id.values == track_id)[0]))
        assert row.values.tobytes() == arrays["aggregated"].tobytes()
    assert np.array_equal(dataset.features.sel(layer=1), FeatureStore(path).aggregated(layer=1))


def test_xarray_reads_a_table_of_no_tracks(tmp_path):
    write_store(tmp_path / "store.zarr", {}, pack=True)
    dataset = xr.open_zarr(tmp_path / "store.zarr" / "packed")
    assert dict(dataset.sizes) == {"track": 0, "layer": 3, "feature": 4}
    assert dataset.features.values.shape == (0, 3, 4)


def with_zarr(folder, chosen=()):
    return zarr.open_array(folder, mode="r")[chosen]


def with_zarrs(folder, chosen=()):
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(folder, mode="r")[chosen]


def with_tensorstore(folder, chosen=()):
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    return tensorstore.open(store, read=True).result()[chosen].read().result()


@pytest.mark.parametrize("read", [with_zarrs, with_tensorstore])
def test_others_read_tracks_and_table(path, read):
    assert read(path / "raw" / "a=2fb").tobytes() == TRACKS["a/b"]["raw"].tobytes()
    assert np.array_equal(read(path / "packed" / "features"), FeatureStore(path).aggregated())


def test_tensorstore_reads_the_numbers_of_the_layers(path):
    assert with_tensorstore(path / "packed" / "layer").tolist() == [0, 1, 2]


def real_numbers(spec):
    """Values of every size, of both signs."""
    rng = np.random.default_rng(5)
    shapes = {"raw": (2, 3, 5, 64), "segments": (2, 3, 64), "aggregated": (3, 64)}
    scales = {kind: 10.0 ** rng.integers(-4, 5, shape) for kind, shape in shapes.items()}
    return {kind: (rng.normal(size=shapes[kind]) * scales[kind]).astype(spec.dtype) for kind in shapes}


@pytest.mark.parametrize("read", [with_zarr, with_zarrs, with_tensorstore])
@pytest.mark.parametrize(
    ("dtype", "codec"),
    [(dtype, codec) for dtype in ("float32", "float16") for codec in ("none", "zstd", "lz4")]
    + [("float32", "bitround")],
)
def test_others_read_every_codec_whole_and_layer_by_layer(tmp_path, dtype, codec, read):
    spec = FeatureSpec.for_arrays(layers=3, dim=64, dtype=dtype, codec=codec)
    arrays = real_numbers(spec)
    store = write_store(tmp_path / "store.zarr", {"a": arrays}, spec=spec, pack=True)
    ours = {"raw": store.raw("a"), "segments": store.segments("a"), "aggregated": store.aggregated()[0]}
    every = slice(None)
    for kind, given in arrays.items():
        held = np.asarray(ours[kind])
        if codec == "bitround":
            assert (held != given).any()
            assert (np.abs(held - given.astype(np.float64)) <= 2.0**-11 * np.abs(given)).all()
        else:
            assert held.tobytes() == given.tobytes()
        segments = (every,) * (given.ndim > 2)
        for chosen in [(), (*segments, 1), (*segments, slice(1, 3))]:
            assert read(store.path / kind / "a", chosen).tobytes() == held[chosen].tobytes()
    assert read(store.path / "packed" / "features", (every, 1)).tobytes() == ours["aggregated"][1].tobytes()
    assert np.array_equal(store.raw("a", layer=1), np.asarray(ours["raw"])[:, 1])
    assert np.array_equal(xr.open_zarr(store.path / "packed").features[0], ours["aggregated"])
    assert store.verify(deep=True).ok


@pytest.mark.parametrize("pipeline", ["zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"])
def test_tracks_that_zarr_wrote_anew_are_read(tmp_path, pipeline):
    """The same numbers written by another library, which may put chunks in another order."""
    spec = FeatureSpec.for_arrays(layers=13, dim=5)
    arrays = features(3, spec=spec, segments=7)
    store = write_store(tmp_path / "store.zarr", {"a": arrays}, spec=spec)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        for kind, values in arrays.items():
            zarr.open_array(store.path / kind / "a", mode="r+")[...] = values
    assert np.array_equal(store.aggregated(tracks=["a"])[0], arrays["aggregated"])
    assert np.array_equal(store.aggregated(layer=5)[0], arrays["aggregated"][5])
    assert np.array_equal(store.segments("a"), arrays["segments"])
    assert np.array_equal(store.raw("a"), arrays["raw"])


def test_numbers_changed_by_zarr_are_read_and_found_by_verify(tmp_path):
    store = write_store(tmp_path / "store.zarr", {"a": features(3)})
    zarr.open_array(store.path / "segments" / "a", mode="r+")[0, 0, 0] = 7
    assert store.segments("a")[0, 0, 0] == 7
    (problem,) = store.verify(deep=True).problems
    assert (problem.what, problem.track_id) == ("track", "a")
    assert "not those that were written" in problem.message


READ = """
import sys, warnings
warnings.simplefilter("error")
from featurestore import FeatureStore
store = FeatureStore(sys.argv[1])
assert len(store) == 3 and store.verify(deep=True).ok
print(float(store.aggregated(layer=1)[:].sum()), float(store.raw("a/b", layer=0)[:].sum()))
unwanted = {"torch", "torchaudio", "transformers", "soundfile", "zarr", "xarray", "dask"} & set(sys.modules)
assert not unwanted, unwanted
"""


@pytest.mark.slow
def test_a_fresh_interpreter_reads_a_store_without_zarr_or_torch(path):
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = FeatureStore(path)
    expected = (float(store.aggregated(layer=1)[:].sum()), float(store.raw("a/b", layer=0)[:].sum()))
    assert done.stdout.split() == [str(x) for x in expected]


def test_nothing_of_a_store_is_outside_it(tmp_path):
    with StoreWriter(tmp_path / "store.zarr", spec=SPEC) as writer:
        for track_id, arrays in TRACKS.items():
            writer.put(track_id, arrays)
        writer.pack()
    assert [p.name for p in tmp_path.iterdir()] == ["store.zarr"]
    names = {p.name for p in Path(tmp_path / "store.zarr").iterdir()}
    assert names == {"zarr.json", "raw", "segments", "aggregated", "packed", ".featurestore"}
