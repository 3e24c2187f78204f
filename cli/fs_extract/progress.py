"""Progress on stderr: a bar on a terminal, a line with the time every minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fs_extract.console import Console

BEAT = 60.0  # seconds between two lines


@contextmanager
def progress_bar(
    console: Console,
    layout: str,
    listener: Callable[[Any], Callable[..., None]],
    line: Callable[..., str | None],
    **settings: Any,
) -> Iterator[Callable[..., None] | None]:
    """What is told of a progress, or None if nothing is to be told.

    On a terminal, `listener` makes it of a bar with this `layout`; elsewhere, `line` makes a line of each one, or
    None as long as there is nothing to say.
    """
    if console.shows_bar:
        from tqdm import tqdm

        tqdm.monitor_interval = 0
        with tqdm(total=0, file=sys.stderr, bar_format=layout, dynamic_ncols=True, leave=False, **settings) as bar:
            yield listener(bar)
    else:
        yield None if console.quiet or console.no_progress else _each_minute(console, line)


def _each_minute(console: Console, line: Callable[..., str | None]) -> Callable[..., None]:
    due = 0.0

    def tell(*progress: Any) -> None:
        nonlocal due
        if (now := time.monotonic()) >= due and (text := line(*progress)) is not None:
            console.tell(text)
            due = now + BEAT

    return tell


def counting_bar(console: Console, unit: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """Progress of so many of so many."""

    def listener(bar: Any) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return show

    layout = f"{{n_fmt}}/{{total_fmt}} {unit} |{{bar:20}}| {{elapsed}}<{{remaining}}"
    began = time.monotonic()

    def line(done: int, total: int) -> str | None:
        return f"{done}/{total} {unit}" if time.monotonic() - began >= BEAT else None

    return progress_bar(console, layout, listener, line)
