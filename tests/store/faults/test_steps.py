"""No change of the disk without a step that tests can stop it at."""

import ctypes
import errno
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.store import filesystem

from . import source
from .fault_actions import NEEDS_ROOM, FailFrom, Kill
from .forking import in_child
from .operations import OPERATIONS
from .steps import STORE, WRITES, Step, watch
from .tracing import NotPermittedError, changing_calls


@pytest.mark.parametrize("module", source.modules())
def test_only_the_module_files_changes_the_disk(module):
    assert list(source.stray_changes(module)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import shutil\n",
        "from os import rename\n",
        "import os\nos.mkdir(p)\n",
        "import os\nos.open(p, os.O_WRONLY)\n",
        "open(p, 'w')\n",
        "p.mkdir()\n",
        "p.parent.replace(q)\n",
        "p.write_bytes(b'')\n",
        "p.parent.open('wb')\n",
        "array.tofile(p)\n",
        "np.memmap(p, 'u1', 'r+')\n",
    ],
)
def test_changes_elsewhere_are_found(code, monkeypatch):
    monkeypatch.setattr(source, "text", lambda _: code)
    assert list(source.stray_changes("some.py"))


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_kernel_sees_no_other_steps(operation, quick):
    try:
        steps, calls = quick.submit(_traced, operation).result()
    except NotPermittedError as error:
        pytest.skip(f"processes cannot be traced here: {error}")
    assert calls == steps


def _traced(name):
    from .exploring import copy_of, prepared, record

    with prepared(name, plain=False) as (operation, folder):
        _, steps, _ = record(operation, folder)
        with copy_of(folder) as copy, operation.conditions():
            return steps, changing_calls(lambda: list(operation.run(copy)))


@pytest.mark.slow
def test_the_kernel_sees_what_python_does_not(tmp_path):
    path = os.fsencode(tmp_path / "unseen")
    try:
        assert changing_calls(lambda: ctypes.CDLL(None).mkdir(path, 0o777)) == ["mkdir"]
    except NotPermittedError as error:
        pytest.skip(f"processes cannot be traced here: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["open", "posix"])
def test_a_step_that_cannot_be_stopped_is_an_error(change, tmp_path):
    def work(_):
        import posix

        watch(lambda step, perform: perform())
        (tmp_path / "seen").mkdir()
        if change == "open":
            open(tmp_path / "unseen", "w").close()
        else:
            posix.mkdir(tmp_path / "unseen")

    ended = in_child(work)
    assert "no test can stop it" in ended.error
    assert os.listdir(tmp_path) == ["seen"]


def test_steps_are_seen_once_each_with_their_place_in_the_source(tmp_path):
    tmp_path.chmod(0o755)  # as the umask makes files: their permissions need no step

    def work(report):
        def fault_action(step: Step, perform):
            report((step.kind, {name for name, _ in step.sites()}))
            return perform()

        watch(fault_action)
        filesystem.write_file(tmp_path / "file", b"content")
        filesystem.remove_tree(tmp_path)

    found = in_child(work)
    assert not found.error
    assert [kind for kind, _ in found.reports] == ["open", "writev", "unlink", "rmdir"]
    assert all("filesystem.py" in names for _, names in found.reports)
    assert STORE.name == "store"


def written_by(kind, fd):
    """Write eight bytes behind the first two of a file by one of the system calls."""
    os.lseek(fd, 2, os.SEEK_SET)
    content = [b"0123", b"4567"] if kind.endswith("v") else b"01234567"
    getattr(os, kind)(fd, content, *([2] if kind.startswith("p") else []))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITES)
def test_every_write_can_be_killed_in_its_middle(kind, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ab")

    def work(_):
        watch(Kill(1, "torn"))
        written_by(kind, os.open(path, os.O_WRONLY))

    assert in_child(work).signal == signal.SIGKILL
    assert path.read_bytes() == b"ab0123"


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITES)
def test_a_full_disk_refuses_every_write(kind, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"ab")

    def work(_):
        watch(FailFrom(1, errno.ENOSPC, NEEDS_ROOM))
        written_by(kind, os.open(path, os.O_WRONLY))

    assert "No space left" in in_child(work).error
    assert path.read_bytes() == b"ab"


@pytest.mark.skipif(sys.platform != "linux", reason="room is asked for on Linux only")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_room_that_is_refused_is_told_as_the_kernel_tells_it(code, tmp_path):
    def work(report):
        def fault_action(step: Step, perform):
            report(step.kind)
            raise OSError(code, os.strerror(code))

        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        watch(fault_action)
        filesystem.reserve(fd, 0, 4096)
        report((filesystem._libc().fallocate(fd, 1, 0, 1), ctypes.get_errno()))

    ended = in_child(work)
    assert not ended.error
    assert ended.reports == ["fallocate", "fallocate", (-1, code)]


def test_steps_of_a_thread_are_seen_while_another_is_in_one(tmp_path):
    def work(report):
        os.fsync = lambda fd: time.sleep(0.1)
        watch(lambda step, perform: (report(step.kind), perform()))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(os.fsync, [0, 1]))

    assert in_child(work).reports == ["fsync", "fsync"]
