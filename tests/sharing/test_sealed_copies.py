"""Copies, exports and questions of a sealed store are those of the same store in folders."""

import uuid

import numpy as np
import obstore
import pytest

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import StoreAccessError
from featurestore.sharing import pull

pytestmark = pytest.mark.slow
SPEC = FeatureSpec.for_arrays(layers=3, dim=4)


@pytest.fixture
def stores(tmp_path):
    """Two stores of the same tracks, one of them sealed."""
    found = []
    for name in ("folders", "sealed"):
        with StoreWriter(tmp_path / name, spec=SPEC, durable=False) as writer:
            for number in range(6):
                rng = np.random.default_rng(number)
                raw = rng.normal(size=(2 + number % 3, 3, 5, 4))
                kinds = ("raw", "segments") if number % 2 else ("segments",)
                label = {"audio": {"path": f"{number}.wav", "duration": 10.0}}
                with writer.track(f"t/{number}", kinds=kinds, attributes=label) as track:
                    segments = None if number % 2 else raw.mean(axis=2)
                    starts = [2.5 * start for start in range(len(raw))]
                    track.append(raw=raw if number % 2 else None, segments=segments, starts=starts)
            writer.pack(seal=name == "sealed" or None)
        found.append(FeatureStore(tmp_path / name))
    return found


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same(found, expected):
    assert found.track_ids == expected.track_ids
    np.testing.assert_array_equal(found.aggregated(), expected.aggregated())
    np.testing.assert_array_equal(found.segments(), expected.segments())
    np.testing.assert_array_equal(found.segments().row_starts, expected.segments().row_starts)
    np.testing.assert_array_equal(found.raw("t/1"), expected.raw("t/1"))
    assert found.verify(deep=True).ok


def test_copies(stores, tmp_path):
    folders, sealed = stores
    assert_same(sealed.copy_to(tmp_path / "copy"), folders)
    part = sealed.copy_to(tmp_path / "part", layers=[1], level="segments")
    np.testing.assert_array_equal(part.segments(layer=1), folders.segments(layer=1))


@pytest.mark.parametrize("to", ["hdf5", "csv", "npy"])
def test_exports(stores, tmp_path, to):
    one, other = (store.export(tmp_path / store.path.name / f"x.{to}", to, level="segments") for store in stores)
    if to == "hdf5":
        for kind in ("aggregated", "segments"):
            found = [np.asarray(getattr(FeatureStore(path), kind)()) for path in (one, other)]
            np.testing.assert_array_equal(*found)
    elif to == "csv":
        assert one.read_bytes() == other.read_bytes()
    else:
        names = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
        assert len(names) >= 12
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def shards(s3, url):
    """Content of each shard of a track in a bucket."""
    client = s3.client(url.rpartition("/")[2])
    names = [entry["path"] for entry in obstore.list(client).collect() if entry["path"][-2:] == ".0"]
    tracks = [name for name in names if not name.startswith("packed/")]
    assert len(tracks) == 6 + 6 + 3
    return {name: bytes(obstore.get(client, name).bytes()) for name in tracks}


def test_buckets(stores, tmp_path, s3):
    folders, sealed = stores
    url = f"s3://bucket/{uuid.uuid4().hex}"
    assert sealed.push(url).copied == 6
    assert sealed.push(url).there == 6
    assert_same(FeatureStore(url), folders)
    folders.push(f"{url}-folders")
    assert shards(s3, url) == shards(s3, f"{url}-folders")
    pull(url, tmp_path / "back")
    assert_same(FeatureStore(tmp_path / "back"), folders)
    with StoreWriter(sealed.path, spec=SPEC) as writer:
        writer.remove("t/2")
    assert pull(url, sealed.path).copied == 1
    assert sorted(sealed.track_ids) == sorted(folders.track_ids)
    assert sealed.verify(deep=True).ok


def test_a_copy_of_the_files_in_a_bucket_is_refused(stores, s3):
    from obstore.store import from_url

    _, sealed = stores
    url = f"s3://bucket/{uuid.uuid4().hex}"
    content = (sealed.path / "zarr.json").read_bytes()
    obstore.put(from_url(url, client_options={"allow_http": True}), "zarr.json", content)
    with pytest.raises(StoreAccessError, match="fs-extract push"):
        FeatureStore(url)


def test_questions(stores):
    folders, sealed = stores
    assert sealed.tracks == folders.tracks
    ours, theirs = sealed.contents(), folders.contents()
    assert ours["hours"] == theirs["hours"]
    assert ours["bytes"]["bundles"] > 0
    assert [x.track_id for x in sealed.similar("t/3", layer=1)] == [
        x.track_id for x in folders.similar("t/3", layer=1)
    ]
    labels = {track_id: number % 2 for number, track_id in enumerate(sealed.track_ids)}
    for level in ("aggregated", "segments"):
        items = [store.to_torch_dataset(level, layer=1, labels=labels) for store in stores]
        batches = [dataset.__getitems__([4, 0, 4, 2]) for dataset in items]
        for one, other in zip(*batches, strict=True):
            assert one["track_id"] == other["track_id"]
            assert one["label"] == other["label"]
            np.testing.assert_array_equal(one["features"], other["features"])
    pooled = [store.aggregated(pooling="mean+std").to_numpy() for store in stores]
    np.testing.assert_array_equal(*pooled)
    rows = [store.segments(layer=[0, 2]).to_dask().compute() for store in stores]
    np.testing.assert_array_equal(*rows)
