"""What lies in the folders of writers and is of nobody: swept, whatever it is."""

import os
import socket
from pathlib import Path

import pytest
from samples import SPEC, assert_same, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter


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
