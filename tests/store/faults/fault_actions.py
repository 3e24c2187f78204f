"""What happens to a process at one of its steps."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Collection
from typing import Any

from .steps import EVERY, WRITES, Perform, Step

NEEDS_ROOM = {*WRITES, "fallocate", "open", "mkdir", "link", "rename"}
"""Steps that a full disk refuses; a rename may need room for a name."""

_write, _pwrite = os.write, os.pwrite


class Kill:
    """SIGKILL at one step: before it, after it, or in the middle of what it writes."""

    def __init__(self, number: int, moment: str) -> None:
        self.left = number
        self.moment = moment

    def __call__(self, step: Step, perform: Perform) -> Any:
        self.left -= 1
        if self.left:
            return perform()
        if self.moment == "torn":
            _write_half(step)
        with contextlib.suppress(OSError):
            if self.moment == "after":
                perform()
        return os.kill(os.getpid(), signal.SIGKILL)


def _write_half(step: Step) -> None:
    """The first half of what one of `WRITES` would write."""
    fd, what, *rest = step.args
    whole = b"".join(what) if step.kind.endswith("v") else bytes(what)
    half = whole[: len(whole) // 2]
    if step.kind.startswith("p"):
        _pwrite(fd, half, rest[0])
    else:
        _write(fd, half)


class Interrupt:
    """Ctrl-C at one step: before it or after it."""

    def __init__(self, number: int, moment: str) -> None:
        self.left = number
        self.moment = moment

    def __call__(self, step: Step, perform: Perform) -> Any:
        self.left -= 1
        if self.left:
            return perform()
        with contextlib.suppress(OSError):
            if self.moment == "after":
                perform()
        raise KeyboardInterrupt


class Fail:
    """An error of the operating system at one step."""

    def __init__(self, number: int, code: int = errno.EIO) -> None:
        self.left = number
        self.code = code

    def __call__(self, step: Step, perform: Perform) -> Any:
        self.left -= 1
        if self.left:
            return perform()
        raise OSError(self.code, os.strerror(self.code))


class FailFrom(Fail):
    """An error at all steps of some kinds from one step on."""

    def __init__(self, number: int, code: int, kinds: Collection[str] = EVERY) -> None:
        super().__init__(number, code)
        self.kinds = kinds

    def __call__(self, step: Step, perform: Perform) -> Any:
        self.left -= 1
        if self.left > 0 or step.kind not in self.kinds:
            return perform()
        raise OSError(self.code, os.strerror(self.code))


class Pause:
    """Stop the process before one step, until somebody lets it go on."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, step: Step, perform: Perform) -> Any:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGSTOP)
        return perform()
