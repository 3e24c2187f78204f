"""A folder that was made for the store: a volume, a folder of an admin's, a restored copy. It is used as it is."""

import contextlib
import os
import shutil
import stat

import numpy as np
import pytest
from samples import SPEC, assert_same, features, read_all, write_store
from users import ANN, BOB, GROUP, as_user

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import NotAStoreError, SpecMismatchError
from featurestore.store import filesystem, reading
from featurestore.store.creation import is_vacant


def put(path, track_id, seed):
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put(track_id, features(seed))
        writer.pack()


def test_a_mounted_volume_becomes_a_store(tmpfs):
    volume = tmpfs()
    (volume / "lost+found").mkdir(mode=0o700)
    put(volume, "a", 0)
    assert os.path.ismount(volume)
    assert_same(read_all(FeatureStore(volume), "a"), features(0))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o2770, 0o2775])
def test_a_folder_of_an_admin_keeps_its_owner_group_and_mode(shared, mode):
    path = shared / "store.zarr"
    path.mkdir()
    os.chown(path, 0, GROUP)
    path.chmod(mode)
    shared.chmod(0o755)  # what holds it is the admin's alone
    before = path.stat()
    as_user(ANN, lambda: put(path, "a", 0), umask=0o002)
    as_user(BOB, lambda: put(path, "b", 1), umask=0o077)
    after = path.stat()
    assert (after.st_ino, after.st_uid, after.st_gid, after.st_mode) == (
        before.st_ino,
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    for found in path.rglob("*"):
        assert stat.S_IMODE(found.stat().st_mode) == (mode & 0o2777 if found.is_dir() else mode & 0o666), found
    assert os.listdir(shared) == ["store.zarr"]
    assert FeatureStore(path).track_ids == ["a", "b"]


def without_empty_folders(source, target):
    """As an object store sends a folder back."""
    for folder, _, files in os.walk(source):
        for name in files:
            place = target / os.path.relpath(folder, source)
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(os.path.join(folder, name), place / name)


@pytest.mark.slow
def test_a_restored_copy_in_a_folder_whose_parent_is_not_ours_is_written_again(shared, tmp_path):
    write_store(tmp_path / "store.zarr", {"a": features(0)}, pack=True)
    path = shared / "restored.zarr"
    without_empty_folders(tmp_path / "store.zarr", path)
    os.system(f"chown -R {ANN}:{GROUP} {path}")
    shared.chmod(0o755)
    as_user(ANN, lambda: put(path, "b", 1))
    store = FeatureStore(path)
    assert np.array_equal(store.aggregated(), [features(n)["aggregated"] for n in range(2)])
    assert store.verify(deep=True).ok


def test_a_restored_copy_in_a_volume_is_written_again(tmpfs, tmp_path):
    write_store(tmp_path / "store.zarr", {"a": features(0)}, pack=True)
    volume = tmpfs()
    without_empty_folders(tmp_path / "store.zarr", volume)
    put(volume, "b", 1)
    assert FeatureStore(volume).track_ids == ["a", "b"]
    assert FeatureStore(volume).verify(deep=True).ok


@pytest.mark.slow
def test_a_store_that_was_begun_is_none_yet_and_is_finished_by_the_next_writer(path, monkeypatch):
    """It ends at each rename: the last one makes the store."""
    rename, left = filesystem.rename, []

    class Killed(BaseException):
        pass

    def stop(source, target):
        if not left:
            raise Killed
        left.pop()
        rename(source, target)

    for steps in range(20):
        left[:] = [None] * steps
        shutil.rmtree(path, ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "rename", stop)
            patch.setattr(filesystem, "remove_tree", lambda _: None)  # killed, and not only interrupted
            with contextlib.suppress(Killed):
                StoreWriter(path, spec=SPEC, durable=False).close()
        if (path / "zarr.json").exists():
            break
        with pytest.raises(NotAStoreError):
            FeatureStore(path)
        put(path, "a", 0)
        assert FeatureStore(path).verify(deep=True).ok
    assert steps == 4  # three groups and what is hidden; the root itself is linked


@pytest.mark.slow
def test_writers_that_make_a_store_at_once_make_one(path):
    """Also if they do not agree on what it holds: all but the first are refused."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def make(number, start):
        start.wait()
        try:
            with StoreWriter(path, spec=FeatureSpec.for_arrays(layers=1 + number % 2, dim=4)) as writer:
                writer.put(str(number), {"aggregated": np.full((1 + number % 2, 4), number)})
            results.put(number)
        except SpecMismatchError:
            results.put(None)

    start = context.Barrier(6)
    workers = [context.Process(target=make, args=(number, start)) for number in range(6)]
    for worker in workers:
        worker.start()
    told = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    made = sorted(number for number in told if number is not None)
    assert made in ([0, 2, 4], [1, 3, 5])
    store = FeatureStore(path)
    assert store.track_ids == [str(number) for number in made]
    assert (store.aggregated(layer=0)[:, 0] == made).all()
    assert store.verify(deep=True).ok


def test_another_writer_may_begin_a_store_between_two_looks(path, monkeypatch):
    """Whether a look at the hidden folder finds it or not, it is there from then on."""
    path.mkdir()
    hidden = path / ".featurestore"

    def then_made(look):
        def looked(at, **options):
            found = look(at, **options)
            if at == hidden:
                hidden.mkdir(exist_ok=True)
            return found

        return looked

    for module, name in ((os.path, "lexists"), (reading, "is_dir")):
        monkeypatch.setattr(module, name, then_made(getattr(module, name)))
    assert is_vacant(path)


@pytest.mark.parametrize("name", ["notes.txt", ".featurestore/mine", "raw/track", "other"])
def test_a_folder_with_anything_else_is_not_made_a_store(path, name):
    (path / name).parent.mkdir(parents=True)
    (path / name).write_text("precious")
    with pytest.raises(NotAStoreError):
        StoreWriter(path, spec=SPEC)
    assert (path / name).read_text() == "precious"
    assert not (path / "zarr.json").exists()


def test_a_store_is_made_without_hard_links(path, monkeypatch):
    def link(*_, **__):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", link)
    put(path, "a", 0)
    assert FeatureStore(path).verify(deep=True).ok
