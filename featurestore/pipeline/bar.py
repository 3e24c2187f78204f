"""The progress bar of a build: a line that fits a terminal, or the bar of a notebook."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from featurestore.amounts import hours_in_words, time_in_words
from featurestore.pipeline.report import Progress

AUTO = "auto"
LAYOUT = "{desc}: {n_fmt}/{total_fmt} tracks{postfix} |{bar}| {elapsed}"
_BAR_COLUMNS = 18
"""What the bar itself and the time take of a terminal's width."""
_BETWEEN_DRAWINGS = 0.1  # seconds


@contextmanager
def auto_bar() -> Iterator[Callable[[Progress], None] | None]:
    """A bar on a terminal or in a notebook, and None elsewhere."""
    if not (sys.stderr.isatty() or _in_notebook()):
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets, a notebook has a bar of text
        from tqdm.auto import tqdm  # which takes the bar of a notebook in a notebook only

    with tqdm(total=0, desc="starting", bar_format=LAYOUT, dynamic_ncols=True, leave=False) as bar:
        yield draw_on(bar)


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this process."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def draw_on(bar: Any) -> Callable[[Progress], None]:
    """Return what draws a Progress on a bar of tqdm with `LAYOUT`."""
    shown: dict[str, Any] = {"at": 0.0, "stage": None}

    def show(now: Progress) -> None:
        bar.set_description_str(now.stage, refresh=False)
        bar.total = now.total
        bar.n = now.checked if now.stage == "checking" else now.done
        width = bar.format_dict["ncols"]
        columns = (width if isinstance(width, int) else 80) - len(f"{now.stage}: {bar.n}/{now.total} tracks")
        bar.set_postfix_str(_that_fit(_parts(now), columns - _BAR_COLUMNS), refresh=False)
        if now.elapsed - shown["at"] >= _BETWEEN_DRAWINGS or now.stage != shown["stage"]:
            shown.update(at=now.elapsed, stage=now.stage)
            bar.refresh()

    return show


def line_of(now: Progress) -> str:
    """Write a Progress on a line of its own."""
    count = now.checked if now.stage == "checking" else now.done
    return ", ".join([f"{now.stage}: {count}/{now.total} tracks", *_parts(now)])


def _parts(now: Progress) -> list[str]:
    """What to say of a running extraction, the most important first."""
    if now.stage != "extracting":
        return []
    return [
        *([] if now.eta is None else [f"{time_in_words(now.eta)} to go"]),
        *([f"{now.failed} failed"] if now.failed else []),
        *([] if now.x_real_time is None else [f"{now.x_real_time:.1f} x real time"]),
        f"{hours_in_words(now.audio_seconds / 3600)} of audio",
    ]


def _that_fit(parts: Sequence[str], columns: int) -> str:
    """Join the first parts, as many as there are columns for."""
    ends = list(accumulate(len(part) + 2 for part in parts))
    return ", ".join(part for part, end in zip(parts, ends, strict=True) if end <= columns)
