"""Ctrl-C and SIGTERM: at once while the model runs, held back while the store is being written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


@contextmanager
def unheard() -> Iterator[None]:
    """Begin processes that do not hear Ctrl-C, which reaches all of a terminal: this one tells them to end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into one KeyboardInterrupt at a moment when nothing is half written.

    Later signals are ignored until the block is left, so that an impatient second Ctrl-C does not stop the
    cleaning up. Handlers that the program has installed itself stay; outside the main thread nothing is installed.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._deferred = self._asked = self._raised = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if not self._deferred:
            self._raise()

    def ask(self) -> None:
        """Ask for an interrupt from another thread: it comes with the next moment that allows one."""
        self._asked = True

    def _raise(self) -> None:
        if self._asked and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold interrupts back within the block; one that came is raised after it."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if not before:
            self._raise()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Allow interrupts again for a part of a `deferred` block."""
        before, self._deferred = self._deferred, False
        try:
            self._raise()
            yield
        finally:
            self._deferred = before
