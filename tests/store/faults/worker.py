"""Processes that run explorations: without threads, so that they can be forked at any time."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable
from typing import Any


def begin() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # After the line before, as they import numpy; numcodecs, as the library has it when it first compresses.
    import numcodecs  # noqa: F401

    from . import interruptions  # noqa: F401

    gc.freeze()


def call(function: str, *args: Any, **options: Any) -> Any:
    """Call a function of this package that is given as module.name."""
    module, name = function.split(".")
    wanted: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return wanted(*args, **options)
