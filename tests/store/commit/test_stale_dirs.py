"""What lies in the folders of writers and is of nobody: swept, whatever it is."""

import os
import socket
from pathlib import Path

import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.store import filesystem


def deep(folder, depth):
    folder.mkdir(parents=True)
    above = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("below", dir_fd=above)
        below = os.open("below", os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=above))
    os.close(above)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["trash/x", f"staging/{socket.gethostname()}.1.y", "journal/a/raw"])
def test_folders_however_deep_are_swept(path, where):
    write_store(path, {"a": features()})
    deep(path / ".featurestore" / where, 1_200)
    StoreWriter(path, spec=SPEC).close()
    for name in ("trash", "staging", "journal"):
        assert not any((path / ".featurestore" / name).iterdir())
    assert_same(read_all(FeatureStore(path), "a"), features())


@pytest.mark.parametrize("where", ["trash/x", "journal/x"])
@pytest.mark.parametrize("make", [Path.touch, lambda place: place.symlink_to("/etc/passwd")], ids=["file", "link"])
def test_what_is_no_folder_is_swept_too(path, where, make):
    write_store(path, {"a": features()})
    make(path / ".featurestore" / where)
    StoreWriter(path, spec=SPEC).close()
    for name in ("trash", "journal"):
        assert not any((path / ".featurestore" / name).iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which files are open")
def test_nothing_is_removed_while_it_is_open(path, monkeypatch):
    """NFS and FUSE would keep it, under another name, and its folder with it."""
    write_store(path, {"a": features()})
    left = path / ".featurestore" / "staging" / f"{socket.gethostname()}.1.dead"
    left.mkdir()
    (left / "owner.lock").touch()
    remove, removed = filesystem.remove_tree, []

    def watched(folder):
        fds = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
        opened = [os.readlink(fd) for fd in fds if os.path.lexists(fd)]
        assert [name for name in opened if name.startswith(f"{folder}/")] == []
        removed.append(folder)
        remove(folder)

    monkeypatch.setattr(filesystem, "remove_tree", watched)
    with StoreWriter(path, spec=SPEC) as writer:
        writer.put("a", features(1), overwrite=True)
        writer.pack()
        writer.remove("a")
        writer.pack()
    assert len(removed) > 3
    assert [*(path / ".featurestore" / "staging").iterdir(), *(path / ".featurestore" / "trash").iterdir()] == []
