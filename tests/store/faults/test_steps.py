"""No change of the disk without a test that stops it there."""

import ctypes
import os

import pytest

from featurestore.store import files

from . import source
from .forking import in_child
from .operations import OPERATIONS
from .steps import STORE, Step, watch
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


def test_every_call_for_a_change_is_reached_by_an_operation(quick):
    """If this fails for a new step: add an operation to scenarios.py that comes to it."""
    recorded = quick.map(_recorded, [(name, plain) for name in OPERATIONS for plain in (False, True)])
    seen = set().union(*recorded)
    missed = {
        f"{module}:{line} files.{name}"
        for (module, line), (last, name) in source.call_sites().items()
        if not any((module, i) in seen for i in range(line, last + 1))
    }
    assert not missed


def _recorded(what):
    from .exploring import prepared, record

    name, plain = what
    with prepared(name, plain=plain) as (operation, folder):
        return record(operation, folder)[2]


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


def test_the_kernel_sees_what_python_does_not(tmp_path):
    path = os.fsencode(tmp_path / "unseen")
    try:
        assert changing_calls(lambda: ctypes.CDLL(None).mkdir(path, 0o777)) == ["mkdir"]
    except NotPermittedError as error:
        pytest.skip(f"processes cannot be traced here: {error}")


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
    def work(report):
        def visitor(step: Step, perform):
            report((step.kind, {name for name, _ in step.sites()}))
            return perform()

        watch(visitor)
        files.write_file(tmp_path / "file", b"content")
        files.remove_tree(tmp_path)

    found = in_child(work)
    assert not found.error
    assert [kind for kind, _ in found.reports] == ["open", "writev", "unlink", "rmdir"]
    assert all("files.py" in names for _, names in found.reports)
    assert STORE.name == "store"
