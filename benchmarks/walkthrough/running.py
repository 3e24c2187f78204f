"""Runs the tasks with a peer, and looks at what each leaves behind."""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.walkthrough.counting import FENCES, PAGE, TASKS

TRACKS = {
    "subset": 6,
    "merge": 13,
    "take_over": 12,
    "resume": 12,
    "retry": 13,
    "exclude": 7,
    "frames": 13,
    "follow": 12,
}
"""How many tracks a task has to leave behind."""


def run(name: str) -> None:
    """Run the tasks with a tool, in a folder of their own, and look at what each leaves behind."""
    scenes = [
        code
        for scene, language, code in FENCES.findall(PAGE.read_text(encoding="utf-8"))
        if scene and language == "python"
    ]
    os.chdir(tempfile.mkdtemp(prefix="walkthrough-"))
    exec("\n".join(scenes), {})
    tool = importlib.import_module(f"benchmarks.walkthrough.{name}")
    lost = Path("collection/rock/lost.wav")
    for task in TASKS:
        if task == "merge":
            tool.before_merge()
        elif task == "take_over":
            for track in Path("collection").rglob("*.wav"):
                target = Path("tree/segments", *track.parts[1:]).with_suffix(".npy")
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, tool.embed(track))
        elif task == "resume":
            _killed(name)
        elif task == "retry":
            lost.write_bytes(b"no audio")
            tool.extract()
            lost.write_bytes(Path("query.wav").read_bytes())
        elif task == "follow":
            Path("collection/jazz/nina-1.wav").rename("collection/jazz/simone.wav")
            lost.unlink()
        found = _call(tool, task)
        _check(tool, task, found)
        print(f"{task}: done", flush=True)


def _call(tool: Any, task: str) -> Any:
    """Call the function of a task with what it asks for by the names of its parameters."""
    function = getattr(tool, task)
    asked = [x.name for x in inspect.signature(function).parameters.values() if x.default is x.empty]
    given: dict[str, Callable[[], Any]] = {
        "table": tool.table,
        "layers": lambda: {3: tool.table()},
        "extract": lambda: tool.extract,
    }
    return function(*(given[name]() for name in asked))


def _killed(name: str) -> None:
    """Kill an extraction when it calls the model for the fourth time."""
    child = get_context("spawn").Process(target=_begin, args=(name,))
    child.start()
    child.join()
    if child.exitcode != -signal.SIGKILL:
        raise SystemExit(f"the extraction was not killed, but ended with {child.exitcode}")


def _begin(name: str) -> None:
    from benchmarks.walkthrough import arrays

    calls, whole = itertools.count(1), arrays.MODEL.hidden_states

    def hidden_states(audio: Any) -> Any:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(audio)

    arrays.MODEL.hidden_states = hidden_states
    _call(importlib.import_module(f"benchmarks.walkthrough.{name}"), "resume")


def _check(tool: Any, task: str, found: Any) -> None:
    """An error, if a task has not done what it is for."""
    if task in ("layer", "table"):
        right = found.shape == (12, 192)
    elif task == "similar":
        right = found.index[0].startswith("rock/") and found.is_monotonic_decreasing
    elif task == "query":  # lost.wav is a copy of it
        right = found.index[0].startswith(("jazz/", "rock/lost")) and found.is_monotonic_decreasing
    elif task == "join":
        right = found.shape == (12, 194)
    elif task == "loader":
        features, mask, labels = found
        right = (*mask.shape, 192) == tuple(features.shape) and len(labels) == 4
    elif task in ("report", "hdf5"):
        right = Path({"report": "report.html", "hdf5": "features.h5"}[task]).stat().st_size > 1_000
    elif task in TRACKS:
        left = tool.left(task)
        right = len(left) == TRACKS[task]
        if task == "follow":
            right &= any("simone" in x for x in left) and not any("nina-1" in x or "lost" in x for x in left)
    else:
        right = True
    if not right:
        raise SystemExit(f"{task} has not done what it is for: {found}")
