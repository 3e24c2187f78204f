"""Every change that a process makes on disk, step by step, for a fault_action that watches it or ends it.

Steps are system calls: `watch` puts itself before the functions of `os` that change a disk and before those of
the C library that exchange two folders or ask for room. A change on any other way (a file opened for writing by
`open`, a function of `posix`) is an error.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import featurestore.store
from featurestore.store import filesystem

STORE = Path(featurestore.store.__file__).parent
WRITES = ("write", "writev", "pwrite", "pwritev")
SYNCS = ("fsync", "fdatasync")
KINDS = (
    *("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "mknod", "mkfifo"),
    *WRITES,
    *(
        "sendfile",
        "copy_file_range",
        "splice",
        "posix_fallocate",
        *SYNCS,
        "sync",
        "utime",
        "truncate",
    ),
    *("ftruncate", "chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "setxattr", "removexattr"),
)
"""The functions of `os` that change what is on disk; `os.open` does where it creates or truncates."""

LIBRARY = (
    {"renameat2": ("exchange", slice(1, 4, 2)), "fallocate": ("fallocate", slice(0, 1))}
    if sys.platform == "linux"
    else {"renamex_np": ("exchange", slice(0, 2))}
)
"""The functions of the C library that change what is on disk: kind of the step, and which arguments it has."""

EVERY = (*KINDS, "open", "exchange", "fallocate")
"""Kinds of all steps."""

CREATING = os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
_AUDITED = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime"),
    *("os.chmod", "os.chown", "os.setxattr", "os.removexattr", "shutil.copyfile", "shutil.move"),
}


@dataclass(frozen=True)
class Step:
    """One change that is about to happen."""

    kind: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    def sites(self) -> frozenset[tuple[str, int]]:
        """Lines of the store's modules that are being executed: (file, line)."""
        frame, found = sys._getframe(1), set()
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(STORE):
                found.add((str(path.relative_to(STORE)), frame.f_lineno))
            frame = frame.f_back
        return frozenset(found)


Perform = Callable[[], Any]
FaultAction = Callable[[Step, Perform], Any]


class _Inside(threading.local):
    """How many original functions a thread is in."""

    depth = 0


def watch(fault_action: FaultAction) -> None:
    """From now on and for good, `fault_action(step, perform)` stands in for every change this process makes.

    Threads take their steps one at a time.
    """
    # `perform` nests: what an original function does by itself is not another step.
    inside, turn = _Inside(), threading.Lock()

    def visit(step: Step, perform: Perform) -> Any:
        def performed() -> Any:
            inside.depth += 1
            try:
                return perform()
            finally:
                inside.depth -= 1

        if inside.depth:
            return performed()
        with turn:
            return fault_action(step, performed)

    def wrapped(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any, **options: Any) -> Any:
            return visit(Step(kind, args, options), lambda: original(*args, **options))

        return function

    for kind in KINDS:
        if original := getattr(os, kind, None):
            function = wrapped(kind, original)
            setattr(os, kind, function)
            for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if original in able:
                    able.add(function)

    os_open = os.open

    def open_(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & CREATING:
            step = Step("open", (path, flags, *args), options)
            return int(visit(step, lambda: os_open(path, flags, *args, **options)))
        return os_open(path, flags, *args, **options)

    os.supports_dir_fd.add(open_)
    os.open = open_
    library = filesystem._libc()
    filesystem._libc = lambda: _Library(library, visit)  # type: ignore[assignment]

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if inside.depth:
            return
        # os.open has no mode; `open` has one, and would write unseen.
        unseen = event == "open" and args[1] is not None and set(str(args[1])) & set("wax+")
        if unseen or event in _AUDITED:
            raise AssertionError(
                f"{event}{args} changes the disk where no test can stop it: use featurestore.store.filesystem"
            )

    sys.addaudithook(audit)


class _Library:
    """The C library, with what changes the disk as a step."""

    def __init__(self, library: ctypes.CDLL, visit: FaultAction) -> None:
        self._library = library
        self._visit = visit

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, name)
        if name == "sync_file_range":  # changes nothing: it only lets the system begin
            return function  # type: ignore[no-any-return]
        assert name in LIBRARY, f"{name} is no step that is known"
        kind, which = LIBRARY[name]

        def call(*args: Any) -> int:
            try:
                return int(self._visit(Step(kind, args[which], {}), lambda: function(*args)))
            except OSError as error:
                ctypes.set_errno(error.errno or errno.EIO)
                return -1

        return call
