"""The disks that people have: overlays, a NAS by sshfs, pools and binds. All that a store does works there."""

import os
import shutil

import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter

KINDS = ("segments", "aggregated")


def some(seed, kinds=KINDS):
    return features(seed, kinds=kinds)


def fill(path):
    with StoreWriter(path, spec=SPEC) as writer:
        for seed, track_id in enumerate("abcd"):
            writer.put(track_id, some(seed))
        writer.pack()


def use(path):
    """Everything that changes a store, each by a writer of its own."""
    expected = {track_id: some(seed) for seed, track_id in enumerate("abcd")}

    def put(track_id, seed, kinds=KINDS):
        expected[track_id] = some(seed, kinds)
        with StoreWriter(path, spec=SPEC) as writer:
            writer.put(track_id, expected[track_id], overwrite=True)

    def check():
        store = FeatureStore(path)
        assert sorted(store.track_ids) == sorted(expected)
        for track_id, arrays in expected.items():
            assert_same(read_all(store, track_id), arrays)
        report = store.verify(deep=True)
        assert (report.problems, report.unfinished) == ((), 0)

    check()
    put("e", 10)
    FeatureStore(path).pack()
    check()
    put("a", 11)
    check()
    put("b", 12, kinds=("raw", "segments", "aggregated"))
    put("c", 13, kinds=("aggregated",))
    check()
    FeatureStore(path).remove("d")
    del expected["d"]
    check()
    put("d", 14)
    put("a", 15)
    FeatureStore(path).pack()
    check()
    with StoreWriter(path, spec=SPEC) as writer:
        _, moved = writer.repair()
    assert not moved
    assert os.listdir(path / ".featurestore" / "staging") == os.listdir(path / ".featurestore" / "journal") == []


@pytest.fixture
def overlay(tmpfs, mount):
    """Make an overlay over a folder "lower", without redirected folders, as containers have it."""
    disk = tmpfs()
    for name in ("lower", "upper", "work"):
        (disk / name).mkdir()

    def make():
        options = f"redirect_dir=off,lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work"
        return mount(disk / "merged", "mount", "-t", "overlay", "-o", options, "overlay")

    return disk / "lower", make


@pytest.mark.slow
def test_a_store_on_an_overlay(overlay):
    path = overlay[1]() / "store.zarr"
    fill(path)
    use(path)


@pytest.mark.slow
def test_a_store_that_came_with_an_image(overlay):
    """Folders of the lower layer can be neither renamed nor exchanged."""
    lower, make = overlay
    fill(lower / "store.zarr")
    path = make() / "store.zarr"
    with pytest.raises(OSError, match="cross-device"):
        os.rename(path / "aggregated" / "a", path / "elsewhere")
    use(path)
    assert_same(read_all(FeatureStore(lower / "store.zarr"), "a"), some(0))


def test_a_reader_of_a_track_that_is_replaced_by_copies_sees_one_of_both(overlay, monkeypatch):
    """At every step of the change."""
    from featurestore.store import fallbacks, filesystem

    lower, make = overlay
    fill(lower / "store.zarr")
    path = make() / "store.zarr"
    seen = []

    def looking(function):
        def look(*args, **options):
            result = function(*args, **options)
            found = read_all(FeatureStore(path), "a")
            seen.append(next(seed for seed in (0, 9) if (found["segments"] == some(seed)["segments"]).all()))
            assert_same(found, some(seen[-1]))
            assert "a" in FeatureStore(path).track_ids
            return result

        return look

    for name in ("rename", "unlink", "remove_dir", "sync_dir", "copy_file"):
        monkeypatch.setattr(filesystem, name, looking(getattr(filesystem, name)))
    assert fallbacks.filesystem is filesystem
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("a", some(9), overwrite=True)
    assert set(seen) == {0, 9}
    assert seen == sorted(seen)


@pytest.fixture
def bindfs(tmp_path, mount):
    (tmp_path / "source").mkdir()
    return mount(tmp_path / "bindfs", "bindfs", tmp_path / "source")


@pytest.mark.slow
def test_a_store_on_bindfs(bindfs):
    fill(bindfs / "store.zarr")
    use(bindfs / "store.zarr")
    # Where a file that is open cannot go, its folder cannot.
    for name in ("staging", "trash"):
        assert list((bindfs / "store.zarr" / ".featurestore" / name).iterdir()) == []


SFTP = "/usr/lib/openssh/sftp-server"


@pytest.fixture
def sshfs(tmp_path, mount):
    """A NAS over SFTP, as sshfs has it."""
    if not os.path.exists(SFTP):
        pytest.skip(f"there is no {SFTP}")
    if shutil.which("sshfs") is None:
        pytest.skip("sshfs is not installed")
    (tmp_path / "nas").mkdir()
    command = f"EXEC:'sshfs x\\:{tmp_path}/nas {tmp_path}/sshfs -o passive -f'"
    return mount(tmp_path / "sshfs", "socat", f"EXEC:{SFTP}", command, serving=True)


@pytest.mark.slow
def test_a_store_on_sshfs(sshfs):
    fill(sshfs / "store.zarr")
    use(sshfs / "store.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("create", ["mfs", "epmfs", "rand"])
def test_a_store_on_a_pool_of_disks(tmp_path, mount, create):
    disks = [tmp_path / f"disk{number}" for number in range(3)]
    for disk in disks:
        disk.mkdir()
    pool = ":".join(map(str, disks))
    path = mount(tmp_path / "pool", "mergerfs", "-o", f"category.create={create}", pool) / "store.zarr"
    fill(path)
    use(path)


@pytest.mark.slow
def test_every_way_to_refuse_a_rename_over_a_folder(path, monkeypatch):
    """sshfs says EPERM, others EXDEV, EINVAL or EIO: what is there is exchanged, or set aside first."""
    import errno

    from featurestore.store import filesystem

    write_store(path, {"a": some(0), "b": some(1)}, pack=True)
    rename = os.rename
    refusal = None

    def refuse(source, target):
        if os.path.isdir(target) and os.listdir(target):
            raise OSError(refusal, os.strerror(refusal), str(source), None, str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(filesystem, "exchange", lambda *_: False)
    for number, code in enumerate((errno.EPERM, errno.EXDEV, errno.EINVAL, errno.ENOTEMPTY, errno.ENOSYS), 5):
        refusal = code
        seed = number
        with StoreWriter(path, spec=SPEC) as writer:
            writer.put("a", some(seed), overwrite=True)
            writer.pack()
        store = FeatureStore(path)
        assert_same(read_all(store, "a"), some(seed))
        assert store.verify(deep=True).ok
        assert store.info()["packed"] == 2
