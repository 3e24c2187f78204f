"""Work in a fork of this process, which may end in any way."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass

LIMIT = 30  # seconds after which a child is ended
Report = Callable[[object], None]
_write = os.write


@dataclass(frozen=True)
class Ended:
    """How a child ended: by which signal (0: none), with which error, and what it had reported."""

    signal: int
    error: str
    reports: list[object]


class Child:
    """A fork that runs `work(report)`."""

    def __init__(self, work: Callable[[Report], None]) -> None:
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._reading)
                signal.alarm(LIMIT)
                _run(work, writing)
            finally:
                os._exit(0)
        os.close(writing)

    def stops(self) -> bool:
        """Wait until it stops itself, or ends; whether it stopped."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return True
        self._status = status
        return False

    def ends(self) -> Ended:
        """Let it go on, if it stopped, and wait for its end."""
        if not hasattr(self, "_status"):
            os.kill(self.pid, signal.SIGCONT)
        with open(self._reading, "rb") as pipe:
            content = pipe.read()
        if not hasattr(self, "_status"):
            _, self._status = os.waitpid(self.pid, 0)
        reports = []
        while content:
            size = int.from_bytes(content[:8], "little")
            reports.append(pickle.loads(content[8 : 8 + size]))
            content = content[8 + size :]
        error = reports.pop() if reports and isinstance(reports[-1], _Raised) else ""
        return Ended(os.WTERMSIG(self._status) if os.WIFSIGNALED(self._status) else 0, str(error), reports)


def in_child(work: Callable[[Report], None]) -> Ended:
    """Run `work(report)` in a fork, to its end."""
    return Child(work).ends()


class _Raised(str):
    __slots__ = ()


def _run(work: Callable[[Report], None], writing: int) -> None:
    def report(value: object) -> None:
        content = pickle.dumps(value)
        content = len(content).to_bytes(8, "little") + content
        while content:
            content = content[_write(writing, content) :]

    try:
        work(report)
    except BaseException:
        report(_Raised(traceback.format_exc()))
