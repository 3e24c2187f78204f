"""One training at a time for a folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.errors import SettingError
from featurestore.training.pretrain.processes import Processes

LOCK = ".lock"


@contextmanager
def locked(out: Path, processes: Processes) -> Iterator[None]:
    """Make the folder of a training and keep others out of it; the first process does so for all.

    Raises
    ------
    SettingError
        If another training has it, or it cannot be made; in all processes.
    """
    problem, descriptor = "", -1
    if processes.first:
        try:
            out.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"another training is at work in {out}: wait for its end, or give another folder"
        except OSError as error:
            problem = f"{out} cannot be the folder of the output ({error.strerror or error}): give another one"
    try:
        if processes.any(bool(problem)):
            raise SettingError(problem or f"{out} cannot be the folder of the output, as the first process says")
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
