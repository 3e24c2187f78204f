"""One file of HDF5: it gives what its store gives, other readers understand it, and nothing outside is read."""

import os
import pickle
from dataclasses import replace

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from killing import killed
from samples import SPEC, features, write_store

from featurestore import FeatureStore
from featurestore.errors import (
    CorruptTrackError,
    NotAStoreError,
    SettingError,
    StoreAccessError,
    StoreVersionError,
    TrackNotFoundError,
)
from featurestore.store.hdf5.source import Hdf5Source

TRACKS = {
    f"{group}/ü {number}": features(
        number, segments=1 + number % 4, kinds=("raw", "segments", "aggregated") if number % 3 else ("aggregated",)
    )
    for number in range(9)
    for group in ("a", "b")
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("store") / "s.zarr", TRACKS, pack=True)


@pytest.fixture(scope="module")
def file(store):
    return store.export(store.path.parent / "s.h5", level="all")


@pytest.fixture
def copied(file, tmp_path):
    path = tmp_path / "copy.h5"
    path.write_bytes(file.read_bytes())
    return path


@pytest.mark.slow
def test_it_gives_what_the_store_gives(store, file):
    opened = FeatureStore(file)
    assert opened.track_ids == store.track_ids
    assert opened.spec == store.spec
    assert "a/ü 1" in opened
    assert "a/ü" not in opened
    for track_id, arrays in TRACKS.items():
        known = store.provenance(track_id)
        known.pop("checksums")
        assert opened.provenance(track_id) == known
        for layer in (None, 1, [2, 0]):
            wanted = store.aggregated(layer, tracks=[track_id])[:]
            np.testing.assert_array_equal(opened.aggregated(layer, tracks=[track_id])[:], wanted)
            for kind in ("segments", "raw"):
                if kind in arrays:
                    ours, theirs = getattr(store, kind)(track_id, layer), getattr(opened, kind)(track_id, layer)
                    assert theirs.shape == ours.shape
                    np.testing.assert_array_equal(theirs[:], ours[:])
                    np.testing.assert_array_equal(theirs[-1], ours[-1])
    some = [track_id for track_id, arrays in TRACKS.items() if "segments" in arrays]
    ours, theirs = (x.segments(layer=1, tracks=some) for x in (store, opened))
    np.testing.assert_array_equal(theirs.to_numpy(), ours.to_numpy())
    np.testing.assert_array_equal(theirs.row_starts, ours.row_starts)
    xarray.testing.assert_identical(opened.aggregated(layer=0).to_xarray(), store.aggregated(layer=0).to_xarray())
    assert pickle.loads(pickle.dumps(opened)).track_ids == store.track_ids
    assert opened.verify(deep=True).ok


@pytest.mark.slow
@given(st.data())
def test_any_rows_are_those_of_the_store(store, file, data):
    ids = data.draw(st.lists(st.sampled_from(list(TRACKS)), max_size=12))
    layers = data.draw(st.none() | st.integers(0, 2) | st.lists(st.integers(0, 2), min_size=1, max_size=3))
    ours, theirs = (x.aggregated(layers, tracks=ids).to_numpy() for x in (store, FeatureStore(file)))
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.slow
def test_rows_of_several_chunks(tmp_path):
    spec = replace(SPEC, dim=2)
    tracks = {f"{n:04}": features(n, segments=2, spec=spec, kinds=("segments", "aggregated")) for n in range(1100)}
    store = write_store(tmp_path / "s.zarr", tracks, spec=spec, pack=True)
    opened = FeatureStore(store.export(tmp_path / "s.h5"))
    for rows in (slice(None), slice(1000, 1050), [1099, 3, 3, 1024], slice(None, None, -7)):
        np.testing.assert_array_equal(opened.aggregated(1)[rows], store.aggregated(1)[rows])
        np.testing.assert_array_equal(opened.segments(layer=1)[rows], store.segments(layer=1)[rows])


def test_a_part_of_it(store, tmp_path):
    some = [track_id for track_id in store.track_ids if store.has(track_id, ("segments",))][::-1]
    opened = FeatureStore(store.export(tmp_path / "part.hdf5", layers=[2, 1], tracks=some))
    assert opened.spec.layers == (1, 2)
    assert opened.track_ids == some
    np.testing.assert_array_equal(opened.segments(layer=2)[:], store.segments(layer=2, tracks=some)[:])
    assert opened.provenance(some[0])["kinds"] == ["segments", "aggregated"]


@pytest.mark.parametrize("level", ["aggregated", "segments"])
def test_a_kind_that_it_does_not_have_is_no_damage(store, tmp_path, level):
    opened = FeatureStore(store.export(tmp_path / "part.h5", level=level))
    assert not opened.has("a/ü 0", ("segments",))
    for ask in (lambda: opened.segments("a/ü 0", 1)[:], lambda: opened.segments(layer=1, tracks=["a/ü 0"])[:]):
        with pytest.raises(TrackNotFoundError, match="no segments of"):
            ask()
    assert opened.segments(layer=1, tracks=[]).to_numpy().shape == (0, 4)


def test_float16_is_float32_there(tmp_path):
    spec = replace(SPEC, dtype="float16")
    store = write_store(tmp_path / "s.zarr", {"a": features(spec=spec)}, spec=spec)
    opened = FeatureStore(store.export(tmp_path / "s.h5"))
    assert opened.aggregated(1).dtype == np.float32
    np.testing.assert_array_equal(opened.aggregated(1)[:], store.aggregated(1)[:])


def test_without_tracks(tmp_path):
    opened = FeatureStore(write_store(tmp_path / "s.zarr", {}).export(tmp_path / "s.h5"))
    assert opened.track_ids == []
    assert opened.aggregated(1).to_numpy().shape == (0, 4)
    assert opened.segments(layer=1).to_numpy().shape == (0, 4)


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_reads_it_without_warnings(store, file, engine):
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    with xarray.open_dataset(file, engine=engine) as found:
        assert found.aggregated.dims == ("track", "layer", "feature")
        ids = found.track_id.values.tolist()
        assert [x.decode() if engine == "h5netcdf" else x for x in ids] == store.track_ids
        np.testing.assert_array_equal(found.aggregated.values, store.aggregated()[:])
        assert int(found.row_size.sum()) == found.sizes["row"] == len(found.start)
    with xarray.open_datatree(file, engine=engine) as tree:
        assert len(tree["raw"].data_vars) == 12


def test_it_never_changes(file):
    for change in (lambda x: x.pack(), lambda x: x.remove("a/ü 1")):
        with pytest.raises(StoreAccessError, match="one file, which never changes"):
            change(FeatureStore(file))


def test_another_file_in_its_place_is_seen(store, tmp_path):
    path = store.export(tmp_path / "s.h5", tracks=["a/ü 1"])
    opened = FeatureStore(path)
    assert len(opened) == 1
    store.export(path, tracks=["b/ü 1", "a/ü 2"])
    assert opened.track_ids == ["b/ü 1", "a/ü 2"]
    store.export(path, layers=[1])
    with pytest.raises(CorruptTrackError, match="open it again"):
        len(opened)


def test_an_id_that_hdf5_cannot_hold_leaves_what_was_there(tmp_path):
    store = write_store(tmp_path / "s.zarr", {"a\0": features()})
    (tmp_path / "s.h5").write_bytes(b"old")
    with pytest.raises(SettingError, match="ends with NUL"):
        store.export(tmp_path / "s.h5")
    assert (tmp_path / "s.h5").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.h5", "s.zarr"]


def test_files_of_others(tmp_path):
    for name, content in {"text.h5": b"x" * 1000, "empty.h5": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(NotAStoreError, match=f"{name} is no file of HDF5"):
            FeatureStore(tmp_path / name)
    with pytest.raises(NotAStoreError, match="does not exist"):
        FeatureStore(tmp_path / "gone.h5")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = 1
    with pytest.raises(NotAStoreError, match="no features of this library"):
        FeatureStore(tmp_path / "other.h5")


def test_a_newer_format_is_refused(copied):
    with h5py.File(copied, "r+") as file:
        file.attrs["featurestore_format"] = 2
    with pytest.raises(StoreVersionError, match="upgrade"):
        FeatureStore(copied)


def read_everything(path):
    store = FeatureStore(path)
    for track_id in store.track_ids:
        store.provenance(track_id)
        for kind in ("segments", "raw"):
            if store.has(track_id, (kind,)):
                getattr(store, kind)(track_id).to_numpy()
    return store.aggregated().to_numpy()


def external(file, name, secret):
    shape, dtype = file[name].shape, file[name].dtype
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(secret, 0, h5py.h5f.UNLIMITED)])


def virtual(file, name, secret):
    found = file[name]
    layout = h5py.VirtualLayout(found.shape, found.dtype)
    layout[...] = h5py.VirtualSource(secret, name, found.shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def linked(link):
    def change(file, name, secret):
        del file[name]
        file[name] = link(secret, name)

    return change


def huge(file, name, _):
    found = file[name]
    shape, dtype, chunks = (10**7, *found.shape[1:]), found.dtype, found.chunks
    del file[name]
    file.create_dataset(name, shape, dtype, chunks=chunks)


HOSTILE = {
    "external storage": external,
    "a virtual dataset": virtual,
    "a link to another file": linked(lambda secret, name: h5py.ExternalLink(secret, name)),
    "a soft link": linked(lambda secret, name: h5py.SoftLink("/" + name + "x")),
    "nothing": lambda file, name, secret: file.__delitem__(name),
    "a group": lambda file, name, secret: (file.__delitem__(name), file.create_group(name)),
    "more than there is": huge,
    "another type": lambda file, name, secret: (
        file.__delitem__(name),
        file.create_dataset(name, data=[object.__doc__]),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        *("aggregated", "segments", "track_id", "provenance", "row_size", "start", "layer"),
        *("crc32c/aggregated", "crc32c/segments"),
    ],
)
@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_outside_is_read_and_nothing_that_is_not_there(file, copied, name, what):
    with h5py.File(copied, "r+") as opened:
        HOSTILE[what](opened, name, str(file))
    with pytest.raises((CorruptTrackError, NotAStoreError), match=str(copied)):
        read_everything(copied)


@pytest.mark.parametrize("name", ["aggregated", "segments", "raw"])
def test_other_numbers_are_noticed(copied, name):
    with h5py.File(copied, "r+") as opened:
        found = opened[name] if name != "raw" else next(iter(opened["raw"].values()))
        found[0] += 1
    with pytest.raises(CorruptTrackError, match=rf"chunk 0 of layer 0 of {name}.* fails its checksum"):
        read_everything(copied)
    assert not FeatureStore(copied).verify(deep=True).ok


@pytest.mark.slow
def test_damage_is_an_error_or_does_not_matter(file, tmp_path):
    content = file.read_bytes()
    wanted = read_everything(file)
    path = tmp_path / "damaged.h5"
    rng = np.random.default_rng(0)
    for _ in range(
        {"default": 150, "ci": 1_000, "nightly": 20_000}[os.environ.get("HYPOTHESIS_PROFILE", "default")]
    ):
        damaged = bytearray(content[: rng.integers(1, len(content))] if rng.random() < 0.2 else content)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = read_everything(path)
        except (CorruptTrackError, NotAStoreError, StoreVersionError):
            continue
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_file_or_the_new_one(store, tmp_path):
    path = store.export(tmp_path / "s.h5", tracks=["a/ü 1"])
    before, seen = path.read_bytes(), set()
    code = "FeatureStore(sys.argv[3]).export(sys.argv[4], level='all')"
    for _ in killed("from featurestore import FeatureStore; import h5py", code, store.path, path):
        opened = FeatureStore(path)
        seen.add(len(opened))
        assert path.read_bytes() == before if len(opened) == 1 else opened.verify(deep=True).ok
        path.write_bytes(before)
    assert seen == {1, len(TRACKS)}
    store.export(path, tracks=["a/ü 1"])
    assert [x.name for x in tmp_path.iterdir()] == ["s.h5"]  # what the dead have left is gone


def test_it_holds_no_file_open(file):
    source = Hdf5Source(file)
    source.track_ids()
    assert str(file) not in {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}
