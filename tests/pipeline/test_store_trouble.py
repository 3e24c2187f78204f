"""A store that cannot be written stops the build before work, or in the middle with everything published kept."""

import json
import os
import pickle
import subprocess
import time

import numpy as np
import pytest

from featurestore import FeatureStore, build
from featurestore.encode.forward import Forward
from featurestore.errors import (
    BuildStoppedError,
    DeviceLostError,
    NotAStoreError,
    StoreAccessError,
    StoreVersionError,
)


def test_a_file_is_no_store(music, tmp_path, extractor):
    (tmp_path / "s.zarr").write_text("precious")
    with pytest.raises(NotAStoreError, match="file"):
        build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert (tmp_path / "s.zarr").read_text() == "precious"


def test_a_folder_of_other_things_is_no_store_and_stays_as_it_is(music, tmp_path, extractor):
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "thesis.tex").write_text("precious")
    with pytest.raises(NotAStoreError, match=r"s\.zarr"):
        build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert os.listdir(tmp_path / "s.zarr") == ["thesis.tex"]


@pytest.mark.slow
def test_an_empty_folder_becomes_a_store(music, tmp_path, extractor):
    (tmp_path / "s.zarr").mkdir()
    assert build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all").processed == 4


def test_a_store_of_a_newer_release_is_not_touched(music, tmp_path, extractor):
    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", limit=1)
    root = tmp_path / "s.zarr" / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["featurestore"]["format"] = 99
    root.write_text(json.dumps(document))
    with pytest.raises(StoreVersionError, match="upgrade"):
        build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")


@pytest.mark.slow
def test_a_read_only_disk_is_named_before_any_work(music, extractor, small_disk):
    disk = small_disk(32)
    build(music, disk / "s.zarr", extractor=extractor, feature_level="all", limit=1)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(StoreAccessError, match=r"s\.zarr.*read-only"):
        build(music, disk / "s.zarr", extractor=extractor, feature_level="all")
    with pytest.raises(StoreAccessError, match=r"t\.zarr.*read-only"):
        build(music, disk / "t.zarr", extractor=extractor, feature_level="all")
    assert FeatureStore(disk / "s.zarr").aggregated().to_numpy().shape == (1, 4, 64)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(music, tmp_path, extractor):
    (tmp_path / "mine").mkdir(mode=0o500)
    with pytest.raises(StoreAccessError, match="permission denied"):
        build(music, tmp_path / "mine" / "s.zarr", extractor=extractor, feature_level="all")


@pytest.mark.slow
def test_a_card_that_fails_stops_the_build_and_keeps_what_is_published(
    music, tmp_path, extractor, monkeypatch, staged
):
    real, calls = Forward._encode, []

    def fail_later(self, windows, raw, stop):
        calls.append(windows)
        if len(calls) > 1:
            while not len(FeatureStore(tmp_path / "s.zarr")):  # published behind the windows
                time.sleep(0.01)
            raise DeviceLostError("cuda:0 has failed")
        return real(self, windows, raw, stop)

    monkeypatch.setattr(Forward, "_encode", fail_later)
    monkeypatch.setattr(Forward, "failure", lambda _, error: (_ for _ in ()).throw(error))
    with pytest.raises(BuildStoppedError, match=r"cuda:0 has failed\. ") as caught:
        build(music, tmp_path / "s.zarr", extractor=extractor)
    published = len(FeatureStore(tmp_path / "s.zarr"))
    assert 1 <= published < 4
    assert (caught.value.report.processed, caught.value.report.failed) == (published, 0)
    assert f"The {published} tracks that it has published are kept" in str(caught.value)
    assert FeatureStore(tmp_path / "s.zarr").verify(deep=True).ok
    assert staged(tmp_path / "s.zarr") == []
    monkeypatch.undo()
    again = build(music, tmp_path / "s.zarr", extractor=extractor)
    assert (again.processed, again.cached) == (4 - published, published)


def test_a_build_that_stopped_can_be_told_to_other_processes():
    error = pickle.loads(pickle.dumps(BuildStoppedError("no room", report="told so far")))
    assert (str(error), error.report) == ("no room", "told so far")


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_the_build_and_keeps_what_is_published(
    tmp_path, clip, extractor, small_disk, staged
):
    for number in range(6):
        clip(tmp_path / "music" / f"{number}.wav", 4, seed=number)
    disk = small_disk(16)

    def fill_up(now):
        if now.processed == 2 and not (disk / "others").exists():
            free = os.statvfs(disk)
            (disk / "others").write_bytes(b"x" * (free.f_bavail * free.f_bsize - 200_000))

    with pytest.raises(BuildStoppedError, match=r"disk is full.*run the same command again") as caught:
        build(tmp_path / "music", disk / "s.zarr", extractor=extractor, feature_level="all", progress=fill_up)
    assert isinstance(caught.value, StoreAccessError)
    assert (caught.value.report.processed, caught.value.report.failed) == (2, 0)
    assert staged(disk / "s.zarr") == []
    store = FeatureStore(disk / "s.zarr")
    assert store.track_ids == ["0", "1"]
    assert store.verify(deep=True).ok
    (disk / "others").unlink()
    report = build(tmp_path / "music", disk / "s.zarr", extractor=extractor, feature_level="all")
    assert (report.processed, report.cached) == (4, 2)
    assert np.isfinite(FeatureStore(disk / "s.zarr").aggregated().to_numpy()).all()


@pytest.mark.slow
def test_a_build_goes_on_where_a_track_cannot_be_had(music, tmp_path, extractor, monkeypatch):
    """Its lock file is somebody else's: the track is counted as failed, and all others are done."""
    from featurestore.store.commit import locks
    from featurestore.store.format.keys import encode_key

    build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all", limit=1)
    build(music, tmp_path / "t.zarr", extractor=extractor, feature_level="all")
    lost = min(set(FeatureStore(tmp_path / "t.zarr")) - set(FeatureStore(tmp_path / "s.zarr")))
    lock_file = locks.lock_file

    def refuse(path, **options):
        if path.name == locks.stripe_of(encode_key(lost)):
            raise PermissionError(13, "Permission denied", str(path))
        return lock_file(path, **options)

    monkeypatch.setattr(locks, "lock_file", refuse)
    report = build(music, tmp_path / "s.zarr", extractor=extractor, feature_level="all")
    assert [(failure.track_id, failure.error) for failure in report.errors] == [(lost, "TrackAccessError")]
    assert report.processed == 2
    assert set(FeatureStore(tmp_path / "s.zarr")) == set(FeatureStore(tmp_path / "t.zarr")) - {lost}


def test_a_disk_without_names_for_the_files_is_refused_before_any_work(music, extractor, tmp_path):
    disk = tmp_path / "few"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=60", "none", disk], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a tmpfs needs root on Linux")
    try:
        with pytest.raises(StoreAccessError, match=r"4 tracks need about .* files.*df -i"):
            build(music, disk / "s.zarr", extractor=extractor, feature_level="all")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)
