"""Where there are no locks, a file that changes all the time says that a process writes the store.

One process works alone then: another one that opens the store for writing sees the file change, and is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
import uuid
from pathlib import Path
from threading import Event, Lock, Thread

from featurestore.errors import StoreAccessError
from featurestore.store import filesystem, reading

NAME = "heartbeat"
BEAT = 2.0  # seconds
SILENCE = 10.0  # seconds after which a process is taken for dead
_MAX_BYTES = 4096

_log = logging.getLogger("featurestore")
_guard = Lock()
_beating: dict[Path, Heartbeat] = {}


class Heartbeat:
    """Says that this process writes a store, until it is closed as often as it was begun."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._content = json.dumps({"machine": _machine(), "pid": self._pid, "token": uuid.uuid4().hex}).encode()
        self._writers = 1
        self._ended = Event()
        self._lost = False
        self._place()
        Thread(target=self._beat, name="featurestore-heartbeat", daemon=True).start()

    @classmethod
    def begin(cls, path: Path) -> Heartbeat:
        """That of this process, shared by all its writers of a store.

        Raises
        ------
        StoreAccessError
            If another process writes the store.
        """
        with _guard:
            found = _beating.get(path)
            if found is not None and found._pid == os.getpid() and not found._lost:
                found._writers += 1
                return found
            _log.warning(
                "store %s: this file system has no locks, so one process at a time can write here; others that "
                "try are refused",
                path.parents[2],
            )
            _beating[path] = cls(path)
            return _beating[path]

    def check(self) -> None:
        """Raise StoreAccessError if another process has taken this one for dead, and writes the store now."""
        if self._lost:
            raise StoreAccessError(
                f"store {self._path.parents[2]}: this process was silent for so long that another one writes "
                "the store now: run again when that is done"
            )

    def close(self) -> None:
        """End one writer; after the last one the file is removed."""
        with _guard:
            self._writers -= 1
            if self._writers or self._pid != os.getpid():
                return
            self._ended.set()
            if _beating.get(self._path) is self:
                del _beating[self._path]
        with contextlib.suppress(OSError):
            if not self._lost and _read(self._path) == self._content:
                filesystem.unlink(self._path)

    def _place(self) -> None:
        while True:
            try:
                filesystem.write_file(self._path, self._content)
                return
            except FileExistsError:
                refuse_others(self._path)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if _read(self._path) != self._content:
                    self._lost = not self._ended.is_set()
                    return
                filesystem.set_modified(self._path, time.time_ns())


def refuse_others(path: Path) -> None:
    """Look whether another process writes the store, and remove what a dead one has left.

    Raises
    ------
    StoreAccessError
        If one does.
    """
    if not os.path.lexists(path):
        return
    content, deadline = _read(path), time.monotonic() + SILENCE
    before = _state(path)
    while not _is_dead(content) and time.monotonic() < deadline:
        if before is None or _state(path) not in (before, None):
            _refuse(path, content)
        if not os.path.lexists(path):
            return
        time.sleep(min(0.5, SILENCE / 10))
    # Whoever is first to rename it has it.
    aside = path.with_name(f"{NAME}.{uuid.uuid4().hex}")
    try:
        filesystem.rename(path, aside)
    except FileNotFoundError:
        return
    if _read(aside) != content:
        filesystem.rename(aside, path)
        _refuse(path, _read(path))
    filesystem.unlink(aside)


def _refuse(path: Path, content: bytes) -> None:
    try:
        known = json.loads(content)
        who = f"process {int(known['pid'])} on {known['machine'][0]!s:.100}"
    except (ValueError, KeyError, TypeError, IndexError):
        who = "one that does not say which"
    raise StoreAccessError(
        f"store {path.parents[2]}: another process writes it ({who}), and without locks on this file system only "
        "one can: wait until it is done, or let one process do all the work"
    )


def _read(path: Path) -> bytes:
    try:
        return reading.read_file(path, limit=_MAX_BYTES)
    except (OSError, ValueError):
        return b""


def _state(path: Path) -> tuple[int, bytes] | None:
    # Opened, and not only looked at: a network file system may answer from what it remembers.
    content = _read(path)
    try:
        return path.stat().st_mtime_ns, content
    except OSError:
        return None


def _machine() -> list[str]:
    """Host, boot and process namespace, within which a process id says who it is."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return parts


def _is_dead(content: bytes) -> bool:
    """Whether a process is known to be dead, by its id on this very machine."""
    try:
        known = json.loads(content)
        if known["machine"] != _machine() or len(known["machine"]) < 3:
            return False
        os.kill(int(known["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
    return bool(int(known["pid"]) == os.getpid())  # an earlier one with the same id
