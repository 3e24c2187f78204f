"""Threads that never keep the process alive."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

from featurestore.errors import SettingError

_PATIENCE = 1.0
"""Seconds that the threads are waited for at the end."""


@contextlib.contextmanager
def threads(count: int, *, name: str) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Threads that run, in order, what is submitted; what has not begun at the end of the block is dropped.

    Parameters
    ----------
    count : int
        At least 1.
    name : str
        Of the threads, in debuggers.

    Yields
    ------
    callable
        Takes a function without arguments that raises nothing.

    Raises
    ------
    SettingError
        If there are more than the machine starts.
    """
    jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def work() -> None:
        while (job := jobs.get()) is not None:
            job()

    # Daemons, unlike those of concurrent.futures: one that hangs in a dead file system must not keep the
    # process alive.
    crew: list[threading.Thread] = []
    try:
        for number in range(count):
            thread = threading.Thread(target=work, name=f"{name}-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise SettingError(
                    f"this machine does not start {count} threads, only {len(crew)}: ask for fewer workers"
                ) from None
            crew.append(thread)
        yield jobs.put
    finally:
        with contextlib.suppress(Empty):
            while True:
                jobs.get_nowait()
        for _ in crew:
            jobs.put(None)
        for thread in crew:
            thread.join(_PATIENCE)
