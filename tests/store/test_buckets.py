"""A store in a bucket is read as one in a folder, in few requests, and says what is wrong."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import uuid

import numpy as np
import obstore
import pytest
from object_server import SECRET
from samples import SPEC, features, place_aggregated, read_all, write_store

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import (
    CorruptTrackError,
    NotAStoreError,
    SettingError,
    StoreAccessError,
    StoreVersionError,
    TrackNotFoundError,
)
from featurestore.store.bucket import Pointer

pytestmark = pytest.mark.slow
TRACKS = {f"t/{number}": features(number, segments=1 + number % 3) for number in range(6)}


@pytest.fixture
def name():
    return uuid.uuid4().hex


@pytest.fixture
def folder(tmp_path):
    """A store with a packed table, a stale row, a removed track and one that is not packed."""
    store = write_store(tmp_path / "s.zarr", {**TRACKS, "gone": features(7)}, pack=True)
    store.remove("gone")
    with StoreWriter(store.path, spec=SPEC, durable=False) as writer:
        writer.put("t/3", features(33), overwrite=True)
        writer.put("Újabb", features(9))
    return store


def assert_equal(there, here):
    assert sorted(there.track_ids) == sorted(here.track_ids)
    ids = here.track_ids
    for layer in (1, [2, 0], None):
        found, wanted = there.aggregated(layer, tracks=ids), here.aggregated(layer, tracks=ids)
        np.testing.assert_array_equal(found.to_numpy(), wanted.to_numpy())
        found, wanted = there.segments(layer=layer, tracks=ids), here.segments(layer=layer, tracks=ids)
        np.testing.assert_array_equal(found.to_numpy(), wanted.to_numpy())
        np.testing.assert_array_equal(found.row_starts, wanted.row_starts)
        np.testing.assert_array_equal(found[[3, 0]], wanted[[3, 0]])
    for track_id in ids:
        assert there.provenance(track_id) == here.provenance(track_id)
        for kind, values in read_all(here, track_id).items():
            np.testing.assert_array_equal(read_all(there, track_id)[kind], values)


@pytest.mark.parametrize("how", ["pushed", "copied"])
def test_it_is_read_as_the_folder_is(how, s3, name, folder):
    if how == "pushed":
        folder.push(f"s3://bucket/{name}")
    else:
        s3.upload(folder.path, name)
    store = FeatureStore(f"s3://bucket/{name}/")
    assert_equal(store, folder)
    assert_equal(pickle.loads(pickle.dumps(store)), folder)
    assert "t/1" in store
    assert "gone" not in store
    assert store.has("t/1", ("raw", "segments"))
    report = store.verify(deep=True)
    assert report.ok
    assert (report.tracks, report.arrays) == (7, 21)
    assert store.info()["packed"] == (7 if how == "pushed" else 5)
    view = store.aggregated(layer=1)
    assert view.to_xarray().sel(track="t/1").values.tolist() == folder.aggregated(1, tracks=["t/1"])[0].tolist()
    assert np.asarray(store.segments(layer=1).to_dask()).shape == folder.segments(layer=1).shape
    assert view.to_torch().shape == view.shape
    assert store.copy_to(folder.path.with_name("copy.zarr")).verify(deep=True).ok


def test_a_copy_without_its_hidden_folder_has_rows_that_nobody_can_trust(s3, name, folder):
    s3.upload(folder.path, name)
    for path in s3.names(f"{name}/.featurestore"):
        obstore.delete(s3.client(f"{name}/.featurestore"), path)
    assert_equal(FeatureStore(f"s3://bucket/{name}"), folder)


def upload_table(server, folder, name):
    """The root and the table of a store as a push leaves them, without the tracks."""
    server.upload(folder / "packed", f"{name}/packed/1")
    client = server.client(name)
    obstore.put(client, "packed/zarr.json", Pointer("1", {}).encode())
    obstore.put(client, "zarr.json", (folder / "zarr.json").read_bytes())


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "s.zarr"
    spec = FeatureSpec.for_arrays(layers=3, dim=4)
    values = np.random.default_rng(0).normal(size=(10_000, 3, 4)).astype(np.float32)
    with StoreWriter(path, spec=spec, durable=False) as writer:
        place_aggregated(path, {f"{number:05}": row for number, row in enumerate(values)}, spec)
        writer.pack()
    return path, values


def test_a_layer_of_10_000_packed_tracks_is_30_requests_at_most_and_none_the_next_time(s3, name, ten_thousand):
    path, values = ten_thousand
    upload_table(s3, path, name)
    with s3.counting() as requests:
        store = FeatureStore(f"s3://bucket/{name}")
        found = store.aggregated(layer=1).to_numpy()
    np.testing.assert_array_equal(found, values[:, 1])
    assert len(requests) <= 30
    assert {method for method, _, _ in requests} == {"GET"}
    assert not [path for _, path, _ in requests if path.endswith("/") or not path]  # nothing was listed
    with s3.counting() as requests:
        np.testing.assert_array_equal(store.aggregated(layer=1).to_numpy(), values[:, 1])
        np.testing.assert_array_equal(store.aggregated(layer=1)[[9_999, 5]], values[[9_999, 5], 1])
        assert "00017" in store
        assert "17" not in store
        assert len(store) == 10_000
    assert requests == []
    with s3.counting() as requests:
        np.testing.assert_array_equal(store.aggregated(layer=[0, 2], tracks=["05000"])[0], values[5_000, [0, 2]])
    assert len(requests) == 2
    with s3.counting() as requests:
        assert FeatureStore(f"s3://bucket/{name}").segments(layer=1, tracks=[]).shape == (0, 4)
    assert len(requests) <= 15


def test_a_table_that_was_replaced_meanwhile_is_read_anew(s3, name, folder):
    folder.push(f"s3://bucket/{name}")
    store = FeatureStore(f"s3://bucket/{name}")
    before = store.track_ids
    with StoreWriter(folder.path, spec=SPEC, durable=False) as writer:
        writer.put("later", features(50))
    folder.push(f"s3://bucket/{name}")
    assert store.track_ids == before
    old = [
        path for path in s3.names(f"{name}/packed") if path.split("/")[0] not in ("zarr.json", current(s3, name))
    ]
    assert old
    obstore.delete(s3.client(f"{name}/packed"), old)
    ids = ["later", *before]
    np.testing.assert_array_equal(
        store.aggregated(layer=1, tracks=before).to_numpy(), folder.aggregated(1, tracks=before).to_numpy()
    )
    np.testing.assert_array_equal(
        store.aggregated(layer=1, tracks=ids).to_numpy(), folder.aggregated(1, tracks=ids).to_numpy()
    )


def current(server, name):
    found = obstore.get(server.client(name), "packed/zarr.json")
    return json.loads(bytes(found.bytes()))["attributes"]["current"]


def test_zarr_and_xarray_read_it(s3, name, folder):
    import xarray
    import zarr

    folder.push(f"s3://bucket/{name}")
    at = zarr.storage.ObjectStore(s3.client(name), read_only=True)
    root = zarr.open_group(at, mode="r")
    assert set(root["segments"].array_keys()) == {
        "t=2f0",
        "t=2f1",
        "t=2f2",
        "t=2f3",
        "t=2f4",
        "t=2f5",
        "=c3=9ajabb",
    }
    table = root["packed"].attrs["current"]
    with xarray.open_zarr(at, group=f"packed/{table}", consolidated=False) as found:
        rows = found.set_index(track="track_id").features.sel(track="t/2", layer=1)
        np.testing.assert_array_equal(rows, folder.aggregated(1, tracks=["t/2"])[0])


def test_what_was_pushed_can_be_copied_back_by_hand(s3, name, folder, tmp_path):
    folder.push(f"s3://bucket/{name}")
    for path in s3.names(name):
        target = tmp_path / "back.zarr" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bytes(obstore.get(s3.client(name), path).bytes()))
    store = FeatureStore(tmp_path / "back.zarr")
    assert_equal(store, folder)
    store.pack()
    assert store.verify(deep=True).ok


# What is wrong is said, with the way out, and never with a secret.


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(
        StoreAccessError, match=r"s3://no-such-bucket/x: there is no such bucket.*AWS_ENDPOINT_URL"
    ):
        FeatureStore("s3://no-such-bucket/x")


def test_something_else_is_there(s3, name):
    with pytest.raises(NotAStoreError, match=f"s3://bucket/{name} holds no feature store"):
        FeatureStore(f"s3://bucket/{name}")
    obstore.put(s3.client(name), "zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(NotAStoreError, match="not one of this library"):
        FeatureStore(f"s3://bucket/{name}")
    obstore.put(s3.client(name), "zarr.json", b'{"attributes": {"featurestore": {"format": 99}}}')
    with pytest.raises(StoreVersionError, match="upgrade featurestore"):
        FeatureStore(f"s3://bucket/{name}")


def test_no_credentials(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreAccessError, match="no credentials were found: set AWS_ACCESS_KEY_ID"):
        FeatureStore("s3://bucket/x")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises((NotAStoreError, StoreAccessError), match="s3://bucket/x"):
        FeatureStore("s3://bucket/x")


@pytest.mark.parametrize(("status", "said"), [(403, "access is denied"), (401, "credentials are not valid")])
def test_access_is_denied(status, said, s3, name):
    s3.answer = lambda method, path: status if path.startswith(name) else None
    with pytest.raises(StoreAccessError, match=f"s3://bucket/{name}: .*{said}.*{status}"):
        FeatureStore(f"s3://bucket/{name}")


def test_a_server_that_is_busy_is_asked_again(s3, name, folder):
    folder.push(f"s3://bucket/{name}")
    failures = [503, 500]
    s3.answer = lambda method, path: failures.pop() if failures and "features" in path else None
    np.testing.assert_array_equal(
        FeatureStore(f"s3://bucket/{name}").aggregated(layer=1, tracks=folder.track_ids).to_numpy(),
        folder.aggregated(layer=1).to_numpy(),
    )
    assert failures == []
    s3.answer = lambda method, path: 503
    few = {"retry_config": {"max_retries": 1}}
    with pytest.raises(StoreAccessError, match=f"s3://bucket/{name}: the server answers 503"):
        FeatureStore(f"s3://bucket/{name}", storage_options=few)
    with pytest.raises(StoreAccessError, match="cannot be reached"):
        FeatureStore("s3://bucket/x", storage_options={**few, "endpoint": "http://127.0.0.1:1"})


def test_damage(s3, name, folder):
    folder.push(f"s3://bucket/{name}")
    table = current(s3, name)

    def damage(path, change):
        content = bytes(obstore.get(s3.client(name), path).bytes())
        obstore.put(s3.client(name), path, change(content))

    damage(f"packed/{table}/features/c.0.1.0", lambda content: content[:-1])
    damage(f"packed/{table}/features/c.0.2.0", lambda content: b"\1" + content[1:])
    damage("segments/t=2f1/c.0.0.0", lambda content: b"\1" + content[1:])
    damage("raw/t=2f2/c.0.0.0.0", lambda content: content[:-7])
    damage("segments/t=2f4/zarr.json", lambda content: content.replace(b"t/4", b"t/5"))
    obstore.delete(s3.client(name), "segments/t=2f5/c.0.0.0")
    store = FeatureStore(f"s3://bucket/{name}")
    assert store.aggregated(layer=0).to_numpy().shape == (7, 4)
    for read in (
        lambda: store.aggregated(layer=1).to_numpy(),
        lambda: store.aggregated(layer=2).to_numpy(),
        lambda: store.segments("t/1", layer=0).to_numpy(),
        lambda: store.raw("t/2", layer=0).to_numpy(),
        lambda: store.segments("t/4", layer=0).to_numpy(),
        lambda: store.segments("t/5", layer=0).to_numpy(),
    ):
        with pytest.raises(CorruptTrackError):
            read()
    problems = {problem.track_id for problem in store.verify(deep=True).problems}
    assert problems == set(folder.track_ids)  # the table's rows of all, too


def test_what_it_does_not_have(s3, name, folder):
    folder.push(f"s3://bucket/{name}", level="segments")
    store = FeatureStore(f"s3://bucket/{name}")
    with pytest.raises(TrackNotFoundError, match="did you mean 't/1'"):
        store.segments("t1")
    with pytest.raises(TrackNotFoundError, match="no raw of 't/1'"):
        store.raw("t/1")
    with pytest.raises(SettingError, match="has no layer 9"):
        store.aggregated(layer=9)
    assert not store.has("t/1", ("raw",))


def test_it_is_read_only(s3, name, folder):
    folder.push(f"s3://bucket/{name}")
    store = FeatureStore(f"s3://bucket/{name}")
    for change in (store.pack, lambda: store.remove("t/1")):
        with pytest.raises(StoreAccessError, match="read only: change the store in a folder"):
            change()
    with pytest.raises(NotAStoreError, match=r"build it in one, and then `fs-extract push FOLDER s3://bucket/x`"):
        StoreWriter("s3://bucket/x", spec=SPEC)
    assert store.runs() == store.failures() == []


def test_no_secret_is_shown(s3, name, folder, monkeypatch):
    folder.push(f"s3://bucket/{name}")
    options = {"access_key_id": "AKID", "secret_access_key": SECRET, "client_options": {"allow_http": True}}
    options["client_options"]["default_headers"] = {"x-token": SECRET}
    store = FeatureStore(f"s3://bucket/{name}", storage_options=options)
    view = store.segments(layer=1)
    shown = [repr(store), str(vars(store)), repr(view), str(store.info()), repr(store._source.bucket)]
    shown.append(str(store.aggregated(layer=1).to_xarray()))
    s3.answer = lambda method, path: 403
    for wrong in (
        lambda: FeatureStore(f"s3://bucket/{name}", storage_options=options),
        lambda: FeatureStore(f"s3://bucket/{name}", storage_options={**options, "bogus": SECRET}),
        lambda: FeatureStore(f"s3://bucket/{name}", storage_options={**options, "retry_config": SECRET}),
        lambda: FeatureStore(f"s3://key:{SECRET}@bucket/{name}"),
        lambda: FeatureStore(f"https://127.0.0.1/{name}?X-Amz-Signature={SECRET}"),
        lambda: StoreWriter(f"s3://key:{SECRET}@bucket/{name}", spec=SPEC),
    ):
        with pytest.raises((StoreAccessError, SettingError, NotAStoreError)) as caught:
            wrong()
        shown.append(f"{caught.value!r} {caught.value} {caught.value.__cause__!r}")
    assert not [text for text in shown if SECRET in text]
    with pytest.raises(SettingError, match="'bogus' is not valid"):
        FeatureStore(f"s3://bucket/{name}", storage_options={"bogus": 1})
    with pytest.raises(SettingError, match="`storage_options` are for a bucket"):
        FeatureStore(folder.path, storage_options={"region": "x"})


# Other processes.


def _rows(store):
    return store.aggregated(layer=1).to_numpy()


def _error_after_fork(store, answers):
    for read in (lambda: store.segments("t/1").to_numpy(), lambda: FeatureStore(store.path)):
        try:
            read()
        except StoreAccessError as error:
            answers.put(str(error))


def test_a_process_that_was_started_afresh_reads_it_and_one_that_was_forked_says_why_not(s3, name, folder):
    folder.push(f"s3://bucket/{name}")
    store = FeatureStore(f"s3://bucket/{name}")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(_rows, [store]), _rows(store))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_error_after_fork, args=(store, answers))
    child.start()
    try:
        for _ in range(2):
            assert "forked" in answers.get(timeout=60)
    finally:
        child.kill()
        child.join()


def test_obstore_is_imported_for_a_bucket_only_and_named_where_it_is_missing(folder):
    code = """
import sys
from featurestore import FeatureStore
FeatureStore(sys.argv[1]).aggregated(layer=1).to_numpy()
assert not [name for name in sys.modules if name.partition(".")[0] in ("obstore", "boto3", "torch")]
sys.modules["obstore.store"] = None
try:
    FeatureStore("gs://bucket/x")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, folder.path], capture_output=True, text=True)
    assert done.stdout == "obstore is needed: pip install 'featurestore[s3]'\n", done.stderr


def test_reading_it_needs_no_torch(s3, name, folder):
    folder.push(f"s3://bucket/{name}")
    code = """
import sys
from featurestore import FeatureStore
store = FeatureStore(sys.argv[1])
store.aggregated(layer=1).to_numpy(), store.segments(layer=1).to_numpy(), store.raw("t/1").to_numpy()
assert not [name for name in sys.modules if name.partition(".")[0] in ("torch", "boto3", "zarr", "av")]
"""
    command = [sys.executable, "-W", "error", "-c", code, f"s3://bucket/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
