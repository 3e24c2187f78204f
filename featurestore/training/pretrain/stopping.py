"""Ctrl-C and SIGTERM: the step at hand is finished, and the training saved; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self


class Stop:
    """Notes the first Ctrl-C or SIGTERM, which then ends the training after the step at hand.

    After it, Ctrl-C does what it did before.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Handlers that the program has installed itself stay.
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.asked = True
        # SIGTERM may come twice without anybody's impatience: to a group, and once more from who passes it on.
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
