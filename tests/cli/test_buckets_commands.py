"""The commands that push, pull and read a store in a bucket."""

import signal
import time
import uuid

import pytest

from featurestore import FeatureStore, StoreWriter

pytestmark = pytest.mark.slow


@pytest.fixture
def url(s3):
    return f"s3://bucket/{uuid.uuid4().hex}"


def test_there_and_back(run, url, small_store, tmp_path):
    done = run("push", small_store, url, "--level", "segments")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"3 tracks were copied to {url}, 0 were there\n"
    assert run("push", small_store, url, "--json").json == {"path": url, "copied": 0, "there": 3, "failed": []}
    assert run("info", url, "--json").json["tracks"] == 3
    assert run("ls", url).out.splitlines() == ["a/one", "a/two", r"bell\x07\nhere"]
    assert run("verify", url, "--deep").code == 0
    assert run("copy", url, tmp_path / "copy.zarr", "--layers", "1").code == 0
    assert run("export", url, tmp_path / "x.csv", "--level", "aggregated").code == 0
    assert run("similar", url, "a/one", "--layer", "1").code == 0
    assert run("pull", url, tmp_path / "back.zarr").out.startswith("3 tracks were copied")
    assert run("verify", tmp_path / "back.zarr", "--deep").code == 0
    assert run("runs", url).code == 0


def test_what_cannot_be_is_refused_with_the_way_out(run, url, small_store, music, tmp_path):
    done = run("build", music, url, "--model", "logmel")
    assert done.code == 2
    assert "build it in one, and then `fs-extract push FOLDER" in done.err
    run("push", small_store, url)
    for command in (["pack", url], ["rm", url, "a/one", "--yes"], ["verify", url, "--repair"]):
        done = run(*command)
        assert done.code == 2
        assert "fs-extract push" in done.err or "push it again" in done.err
    done = run("push", small_store, "s3://no-such-bucket/x")
    assert done.code == 2
    assert "there is no such bucket" in done.err
    done = run("info", "s3://key:hunter2@bucket/x")
    assert done.code == 2
    assert "hunter2" not in done.err
    assert run("push", small_store, tmp_path / "x").code == 2
    assert run("push", small_store, url, "--shard", "9/2").code == 2


def test_a_track_that_fails_is_exit_code_1(run, url, small_store):
    run("push", small_store, url)
    store = FeatureStore(small_store)
    with StoreWriter(small_store, spec=store.spec, overwrite=True) as writer:
        writer.put("a/two", {"segments": store.segments("a/one").to_numpy()})
    done = run("push", small_store, url)
    assert done.code == 1
    assert "a/two" in done.err
    assert "as another revision" in done.err
    assert [track_id for track_id, _ in run("push", small_store, url, "--json").json["failed"]] == ["a/two"]


def test_ctrl_c_ends_it_and_what_was_pushed_is_there(start, s3, url, small_store):
    store = FeatureStore(small_store)
    with StoreWriter(small_store, spec=store.spec) as writer:
        for number in range(100):
            writer.put(f"more/{number:03}", {"segments": store.segments("a/one").to_numpy()})

    def answer(method, path):
        if "/more=2f05" in path:
            time.sleep(0.5)
            if not sent:
                sent.append(process.send_signal(signal.SIGINT))

    sent = []
    process = start("push", small_store, url)
    s3.answer = answer
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    s3.answer = lambda method, path: None
    there = FeatureStore(url)
    assert 3 <= len(there) < 103
    assert there.verify(deep=True).ok
    assert store.push(url).ok
    assert len(FeatureStore(url)) == 103
