"""Folders of other users, and disks of other kinds. Where they cannot be had, tests are skipped and say why."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from samples import features, write_store
from users import GROUP


@pytest.fixture
def as_root():
    if os.geteuid() != 0:
        pytest.skip("only root can be other users")


@pytest.fixture
def shared(as_root, tmp_path):
    """A folder in which a group of users works together (setgid, writable for all of it)."""
    # Imports what is needed now: other users may not read this Python.
    write_store(tmp_path / "first.zarr", {"a": features()}, pack=True).verify(deep=True)
    folder = Path(tempfile.mkdtemp(prefix="featurestore-shared-", dir="/tmp"))
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mount():
    """Mount something at a new folder: `mount(folder, *command)`, the command without the folder."""
    mounted, running = [], []

    def mount(folder, *command, serving=False):
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        if serving:  # the command names the folder itself, and goes on running
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        else:
            done = subprocess.run([*command, folder], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{command[0]} cannot mount here: {done.stderr.strip()}")
        deadline = time.monotonic() + 20
        while not os.path.ismount(folder):
            if time.monotonic() > deadline:
                pytest.skip(f"{command[0]} does not mount here")
            time.sleep(0.05)
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", folder], check=True)
    for process in running:
        process.terminate()
        process.wait()


@pytest.fixture
def tmpfs(tmp_path, mount):
    """A small disk: `tmpfs("size=64m")`."""

    def make(options="size=64m"):
        return mount(tmp_path / "tmpfs", "mount", "-t", "tmpfs", "-o", options, "none")

    return make
