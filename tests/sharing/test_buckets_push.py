"""push and pull: tracks get into a bucket and back as they are, whatever ends on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from datetime import timedelta

import numpy as np
import obstore
import pytest
from object_server import ObjectServer

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import (
    MissingDependencyError,
    SettingError,
    SpecMismatchError,
    StoreAccessError,
)
from featurestore.sharing import pull
from featurestore.sharing import push as pushing
from featurestore.store.object_files import ObjectFile

pytestmark = pytest.mark.slow
SPEC = FeatureSpec.for_arrays(layers=3, dim=4)


def write(path, numbers, *, overwrite=False, seed=0, pack=False):
    with StoreWriter(path, spec=SPEC, durable=False, overwrite=overwrite) as writer:
        for number in numbers:
            raw = np.random.default_rng((seed, number)).normal(size=(2, 3, 5, 4))
            with writer.track(f"t/{number}", attributes={"audio": {"path": f"{number}.wav"}}) as track:
                track.append(raw=raw, starts=[0.0, 2.5])
        if pack:
            writer.pack()
    return FeatureStore(path)


@pytest.fixture
def url():
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "s.zarr", range(6), pack=True)


def assert_holds(store, folder, tracks=None, level="all"):
    """`store` has exactly these tracks of a folder, and all of it is sound."""
    tracks = folder.track_ids if tracks is None else tracks
    assert sorted(store.track_ids) == sorted(tracks)
    kinds = {"all": 3, "segments": 2, "aggregated": 1}[level]
    for track_id in tracks:
        known = folder.provenance(track_id)
        found = store.provenance(track_id)
        assert found["revision"] == known["revision"]
        assert found["audio"] == known["audio"]
        assert found["kinds"] == ["raw", "segments", "aggregated"][-kinds:]
        for kind in found["kinds"][:-1]:
            np.testing.assert_array_equal(getattr(store, kind)(track_id)[:], getattr(folder, kind)(track_id)[:])
    ids = sorted(tracks)
    np.testing.assert_array_equal(
        store.aggregated(tracks=ids).to_numpy(), folder.aggregated(tracks=ids).to_numpy()
    )
    report = store.verify(deep=True)
    assert report.problems == ()
    assert report.arrays == kinds * len(ids)


def test_all_of_it_and_again(s3, url, folder):
    seen = []
    report = folder.push(url, notify=lambda done, total: seen.append((done, total)))
    assert (report.copied, report.there, report.failed, report.ok) == (6, 0, [], True)
    assert seen == [(number, 6) for number in range(1, 7)]
    assert_holds(FeatureStore(url), folder)
    with s3.counting() as requests:
        report = folder.push(url, level="segments")
    assert (report.copied, report.there) == (0, 6)
    assert len(requests) <= 6
    assert {method for method, _, _ in requests} == {"GET"}


def test_aggregated_metadata_comes_last_and_nothing_is_overwritten(s3, url, folder):
    with s3.counting() as requests:
        folder.push(url)
    puts = [path.partition("/")[2] for method, path, _ in requests if method == "PUT"]
    assert len(puts) == len(set(puts))
    assert all(conditional for method, _, conditional in requests if method == "PUT")
    for number in range(6):
        own = [path for path in puts if f"/t=2f{number}/" in path]
        assert len(own) == 6
        assert own[-1] == f"aggregated/t=2f{number}/zarr.json"
    assert puts[3] == "zarr.json"  # the root, after its groups
    assert puts[-1] == "packed/zarr.json"


def test_a_level_and_more_of_it_later(s3, url, folder):
    folder.push(url, level="aggregated")
    assert_holds(FeatureStore(url), folder, level="aggregated")
    assert FeatureStore(url).segments(layer=1, tracks=[]).shape == (0, 4)
    for level in ("segments", "all"):
        assert folder.push(url, level=level).copied == 6
        assert_holds(FeatureStore(url), folder, level=level)
        assert FeatureStore(url).segments(layer=1).shape == (12, 4)
    assert folder.push(url, level="aggregated").there == 6
    assert_holds(FeatureStore(url), folder)
    with pytest.raises(SettingError, match="level"):
        folder.push(url, level="most")


def test_tracks_that_are_new_and_a_table_that_grows(s3, url, tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.store.table.layout.SMALL_ROWS", 16)
    folder = write(tmp_path / "s.zarr", range(6), pack=True)
    folder.push(url)
    write(folder.path, range(6, 20))
    with s3.counting() as requests:
        report = folder.push(url)
    assert (report.copied, report.there) == (14, 6)
    assert_holds(FeatureStore(url), folder)
    assert FeatureStore(url).track_ids[:6] == [f"t/{number}" for number in range(6)]
    write(folder.path, [200])
    with s3.counting() as requests:
        folder.push(url)
    assert_holds(FeatureStore(url), folder)
    table = [path for method, path, _ in requests if method == "PUT" and "/packed/" in path and "/c.0" in path]
    assert len(table) == 4 + 1  # the first chunk, of 16 rows, was copied within the bucket; `layer` was written
    assert [path for method, path, _ in requests if method == "GET" and "features/c.0" in path] == []


def test_a_track_that_has_changed_stays_and_is_named(s3, url, folder):
    folder.push(url)
    before = folder.provenance("t/3")["revision"]
    write(folder.path, [3], overwrite=True, seed=1)
    report = folder.push(url)
    assert (report.copied, report.there) == (0, 5)
    ((track_id, message),) = report.failed
    assert track_id == "t/3"
    assert f"in {url} as another revision, and stays as it is: push to another address" in message
    store = FeatureStore(url)
    assert store.provenance("t/3")["revision"] == before
    assert store.verify(deep=True).ok


def test_a_damaged_track_is_not_pushed(s3, url, folder):
    shard = folder.path / "segments" / "t=2f2" / "c.0.0.0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    report = folder.push(url)
    ((track_id, message),) = report.failed
    assert track_id == "t/2"
    assert "checksum" in message
    assert_holds(FeatureStore(url), folder, [x for x in folder.track_ids if x != "t/2"])


def test_other_settings_and_other_addresses(s3, url, folder, tmp_path, monkeypatch):
    folder.push(url)
    spec = FeatureSpec.for_arrays(layers=2, dim=4)
    with StoreWriter(tmp_path / "other.zarr", spec=spec) as writer:
        writer.put("a", {"aggregated": np.ones((2, 4))})
    with pytest.raises(
        SpecMismatchError, match=f"{url} holds features of other settings.*push to another address"
    ):
        FeatureStore(tmp_path / "other.zarr").push(url)
    with pytest.raises(SettingError, match="no address of a bucket"):
        folder.push(str(tmp_path / "x"))
    with pytest.raises(SettingError, match="push the store that it was made from"):
        FeatureStore(url).push(url + "2")
    with pytest.raises(StoreAccessError, match="there is no such bucket"):
        folder.push("s3://no-such-bucket/x")
    s3.answer = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(StoreAccessError, match="to push: write it"):
        folder.push(f"{url}-denied")
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[s3\]'"):
        folder.push(url)


def test_parts(s3, url, folder):
    for part in ("1/2", "2/2"):
        folder.push(url, shard=part)
        expected = folder.track_ids if part == "2/2" else FeatureStore(url).track_ids
        assert 0 < len(expected) <= 6
        assert_holds(FeatureStore(url), folder, expected)
    with pytest.raises(SettingError, match="`shard` is I/N"):
        folder.push(url, shard="3/2")


def test_pushes_at_once(s3, url, tmp_path):
    """Two of one store, and one of another, which has tracks of its own."""
    one, other = write(tmp_path / "one.zarr", range(16)), write(tmp_path / "other.zarr", range(100, 108))
    errors = []

    def push(store):
        try:
            assert FeatureStore(store.path).push(url).ok
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=[store]) for store in (one, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for store in (one, other):
        part = FeatureStore(url)
        assert set(store.track_ids) <= set(part.track_ids)
        for track_id in store.track_ids:
            assert part.provenance(track_id) == store.provenance(track_id)
    assert len(FeatureStore(url)) == 24
    assert FeatureStore(url).verify(deep=True).ok


def test_answers_that_are_lost(s3, url, folder):
    """Each request is carried out, answered by an error, and sent again."""
    seen = set()

    def lose(method, path):
        if method != "PUT" or path in seen:
            return None
        seen.add(path)
        return 500

    s3.lost = lose
    for level in ("aggregated", "all"):
        assert folder.push(url, level=level).ok
        seen.clear()
    write(folder.path, [7])
    assert folder.push(url).ok
    assert len(seen) > 6
    assert_holds(FeatureStore(url), folder)


def test_a_gateway_that_compares_tags_without_quotes(s3, url, folder):
    s3.unquoted = True
    for level, copied in (("aggregated", 6), ("segments", 6), ("segments", 0)):
        assert folder.push(url, level=level).copied == copied
    write(folder.path, [7])
    assert folder.push(url).copied == 7
    assert_holds(FeatureStore(url), folder)


def test_what_a_copy_has_is_in_the_table_too(s3, url, folder):
    """A store that was copied into the bucket as it is, and then pushed to."""
    other = write(folder.path.with_name("other.zarr"), range(10, 13))
    s3.upload(other.path, url.rpartition("/")[2])
    folder.push(url)
    assert sorted(FeatureStore(url).track_ids) == sorted(folder.track_ids + other.track_ids)
    assert FeatureStore(url).verify(deep=True).ok


def test_what_is_left_of_another_revision(s3, url, folder, monkeypatch):
    """A push was killed within a track, which was extracted anew before the next push."""
    name = url.rpartition("/")[2]
    obstore.put(s3.client(name), "segments/t=2f1/c.0.0.0", b"of another revision")
    ((track_id, message),) = folder.push(url).failed
    assert track_id == "t/1"
    assert "segments/t=2f1/c.0.0.0 is of another revision, of a push that is at work" in message
    assert "t/1" not in FeatureStore(url)
    monkeypatch.setattr(pushing, "_ABANDONED", timedelta(seconds=-10))
    assert folder.push(url).copied == 1
    assert_holds(FeatureStore(url), folder)


def test_tables_that_nobody_reads_any_more_are_removed_after_a_day(s3, url, folder, monkeypatch):
    name = url.rpartition("/")[2]
    folder.push(url)
    obstore.put(s3.client(name), "packed/0123/features/c.0.0.0", b"of a push that was killed")
    write(folder.path, [7])
    folder.push(url)
    tables = {path.split("/")[0] for path in s3.names(f"{name}/packed")}
    assert len(tables) == 1 + 2 + 1
    monkeypatch.setattr("featurestore.sharing.bucket_table._KEPT", timedelta(seconds=-10))
    write(folder.path, [8])
    folder.push(url)
    tables = {path.split("/")[0] for path in s3.names(f"{name}/packed")}
    assert len(tables) == 1 + 2  # the one that was current until now is kept, too
    assert_holds(FeatureStore(url), folder)


PUSH = "import sys; from featurestore import FeatureStore; FeatureStore(sys.argv[1]).push(sys.argv[2])"


@pytest.fixture
def in_a_process(s3):
    """Start a process that ends by SIGKILL when the server gets the n-th request of it."""

    def begin(code, *arguments, kill_at):
        seen = []

        def answer(method, path):
            seen.append(path)
            if len(seen) == kill_at:
                process.send_signal(signal.SIGKILL)

        s3.answer = answer
        process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env={**os.environ})
        process.wait(timeout=120)
        s3.answer = lambda method, path: None
        return process.returncode

    return begin


def test_a_push_that_is_killed_at_any_moment_goes_on(s3, url, tmp_path, in_a_process):
    folder = write(tmp_path / "s.zarr", range(4))
    killed = []
    for round_, kill_at in enumerate([2, 5, 9, 14, 20, 27, 35, 38, 41, 43]):
        at = f"{url}-{round_}"
        killed.append(in_a_process(PUSH, folder.path, at, kill_at=kill_at))
        if s3.names(at.rpartition("/")[2]) and "zarr.json" in s3.names(at.rpartition("/")[2]):
            store = FeatureStore(at)
            assert store.verify(deep=True).ok
            assert set(store.track_ids) <= set(folder.track_ids)
        assert folder.push(at).ok
        assert_holds(FeatureStore(at), folder)
    assert killed.count(-signal.SIGKILL) >= 8


def test_one_of_two_pushes_is_killed(s3, url, tmp_path, in_a_process):
    folder = write(tmp_path / "s.zarr", range(12))
    for kill_at in (30, 70):
        other = threading.Thread(target=lambda: FeatureStore(folder.path).push(url))
        other.start()
        in_a_process(PUSH, folder.path, url, kill_at=kill_at)
        other.join()
        assert_holds(FeatureStore(url), folder)
        write(folder.path, range(kill_at, kill_at + 4))
        folder.push(url)
        assert_holds(FeatureStore(url), folder)


# And back.


def test_pull_and_pull_again(s3, url, folder, tmp_path):
    folder.push(url)
    seen = []
    report = pull(url, tmp_path / "back.zarr", notify=lambda done, total: seen.append((done, total)))
    assert (report.copied, report.there, report.ok) == (6, 0, True)
    assert seen[-1] == (6, 6)
    back = FeatureStore(tmp_path / "back.zarr")
    assert_holds(back, folder)
    assert back.info()["packed"] == 6
    for path in folder.path.rglob("t=2f*/*"):
        assert (back.path / path.relative_to(folder.path)).read_bytes() == path.read_bytes()
    assert pull(url, back.path).there == 6
    assert back.push(url).there == 6


def test_pull_a_part_and_the_rest_later(s3, url, folder, tmp_path):
    folder.push(url)
    back = tmp_path / "back.zarr"
    first = pull(url, back, level="aggregated", shard="1/2")
    assert_holds(FeatureStore(back), folder, FeatureStore(back).track_ids, level="aggregated")
    assert first.copied == len(FeatureStore(back))
    assert pull(url, back).copied == 6
    assert_holds(FeatureStore(back), folder)


def test_pull_leaves_what_is_there(s3, url, folder, tmp_path):
    folder.push(url)
    back = write(tmp_path / "back.zarr", [3], seed=1)
    before = back.provenance("t/3")
    report = pull(url, back.path)
    assert report.copied == 5
    ((track_id, message),) = report.failed
    assert track_id == "t/3"
    assert f"as another revision than in {url}: remove it from the folder" in message
    assert back.provenance("t/3") == before
    with pytest.raises(SettingError, match="fs-extract copy"):
        pull(str(folder.path), tmp_path / "x.zarr")


def test_damage_on_the_way_is_not_published(s3, url, folder, tmp_path):
    folder.push(url)
    client = s3.client(url.rpartition("/")[2])
    content = bytearray(obstore.get(client, "raw/t=2f4/c.0.0.0.0").bytes())
    content[7] ^= 1
    obstore.put(client, "raw/t=2f4/c.0.0.0.0", bytes(content))
    report = pull(url, tmp_path / "back.zarr")
    assert [track_id for track_id, _ in report.failed] == ["t/4"]
    back = FeatureStore(tmp_path / "back.zarr")
    assert_holds(back, folder, [x for x in folder.track_ids if x != "t/4"])


PULL = "import sys; from featurestore.sharing import pull; pull(sys.argv[1], sys.argv[2])"


def test_a_pull_that_is_killed_goes_on(s3, url, folder, tmp_path, in_a_process):
    folder.push(url)
    for round_, kill_at in enumerate([3, 8, 20, 40]):
        back = tmp_path / f"{round_}.zarr"
        assert in_a_process(PULL, url, back, kill_at=kill_at) in (-signal.SIGKILL, 0)
        assert pull(url, back).ok
        assert_holds(FeatureStore(back), folder)


def test_a_pull_that_is_interrupted_does_not_finish_what_is_on_its_way(s3, url, folder, tmp_path, monkeypatch):
    folder.push(url)
    interrupted, read = threading.Event(), ObjectFile.read

    def slowly(self, size, offset):
        if offset and "/t=2f0/" not in self._path:
            interrupted.wait()
            time.sleep(0.02)
        return read(self, size, offset)

    def interrupt(done, total):
        interrupted.set()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[pull.__module__], "_BLOCK", 8)
        patch.setattr(ObjectFile, "read", slowly)
        with pytest.raises(KeyboardInterrupt):
            pull(url, tmp_path / "back.zarr", notify=interrupt)
    back = FeatureStore(tmp_path / "back.zarr")
    assert back.track_ids == ["t/0"]
    assert back.verify(deep=True).left == 0
    assert pull(url, back.path).copied == 5
    assert_holds(FeatureStore(back.path), folder)


def test_a_server_of_its_own_is_in_the_options(folder, tmp_path):
    """What `storage_options` say is enough, without the environment."""
    server = ObjectServer()
    try:
        options = {"endpoint": server.endpoint, "access_key_id": "x", "secret_access_key": "y"}
        folder.push("s3://bucket/s", storage_options=options)
        assert_holds(FeatureStore("s3://bucket/s", storage_options=options), folder)
        assert pull("s3://bucket/s", tmp_path / "back.zarr", storage_options=options).copied == 6
    finally:
        server.close()
