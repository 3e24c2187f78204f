"""What a process has died of, and which processes the system kills first when memory is full."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

_ADJUSTMENT = Path("/proc/self/oom_score_adj")
_FIRST = 500
"""Of 1000; the one with which a process counts as twice as large as half of the memory."""


def die_first() -> None:
    """Have the system kill this process before others when memory is full; Linux alone can be told."""
    with contextlib.suppress(OSError, ValueError):
        if int(_ADJUSTMENT.read_text()) < _FIRST:
            _ADJUSTMENT.write_text(str(_FIRST))


def count_memory_kills() -> int | None:
    """Return how many processes this system has killed since memory was full; None where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def is_of_memory(code: int, kills: int | None) -> bool:
    """Tell whether the system has ended a process, or may have, since memory was full.

    `code` is its exit code, and `kills` what `count_memory_kills` has said when it began.
    """
    return code == -signal.SIGKILL and (kills is None or count_memory_kills() != kills)


def cause_of_death(code: int, kills: int | None) -> str:
    """Say what has ended a process; the parameters are those of `is_of_memory`."""
    if is_of_memory(code, kills):
        is_sure = "as memory was full" if kills is not None else "as the system does when memory is full"
        return f"was killed, {is_sure} (try fewer `processes` or a smaller `batch_size`)"
    if code == -signal.SIGKILL:
        return "was killed by somebody (SIGKILL; memory was not full)"
    return ending(code)


def ending(code: int) -> str:
    """Say how a process has ended, by its exit code alone."""
    return f"ended with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
