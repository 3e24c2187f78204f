"""Everything that can be done with a store, in a process of little memory and time, and how it ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from samples import SPEC, features

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import FeatureStoreError

MEMORY = 10**9  # bytes more than the process has
SECONDS = 20


def reading(path: Path) -> dict[str, Callable[[], Any]]:
    """What a reader may ask of the track "a" and of all."""

    def store() -> FeatureStore:
        return FeatureStore(path)

    return {
        "open": store,
        "ids": lambda: (store().track_ids, len(store()), "a" in store(), store().info()),
        "all": lambda: np.asarray(store().aggregated(layer=1)),
        "one": lambda: np.asarray(store().aggregated(tracks=["a"])),
        "segments": lambda: (store().segments("a").starts, np.asarray(store().segments("a"))),
        "raw": lambda: (store().raw("a").shape, store().raw("a", layer=1)[0]),
        "all segments": lambda: np.asarray(store().segments(layer=1)),
        "provenance": lambda: (store().provenance("a"), store().has("a", kinds=("raw",))),
        "verify": lambda: store().verify(deep=False).to_dict(),
        "verify deep": lambda: store().verify(deep=True).to_dict(),
    }


def writing(path: Path) -> dict[str, Callable[[], Any]]:
    """What a writer may do with the track "a", another one and all."""

    def writer() -> StoreWriter:
        return StoreWriter(path, spec=SPEC, durable=False)

    def do(work: Callable[[StoreWriter], Any]) -> Any:
        with writer() as opened:
            return work(opened)

    return {
        "open to write": lambda: writer().close(),
        "existing": lambda: do(lambda w: w.existing("a")),
        "put another": lambda: do(lambda w: w.put("z", features(9), overwrite=True)),
        "pack": lambda: do(lambda w: w.pack()),
        "overwrite": lambda: do(lambda w: w.put("a", features(8), overwrite=True)),
        "remove": lambda: do(lambda w: w.remove("b")),
        "repair": lambda: do(lambda w: w.repair()),
        "pack again": lambda: do(lambda w: w.pack()),
    }


def outcomes(path: Path, makers: list[Callable[[Path], dict[str, Callable[[], Any]]]]) -> dict[str, str]:
    """How each thing that can be done ended: "done", the name of an error of this library, or a traceback."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(SECONDS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            for make in makers:
                for name, work in make(path).items():
                    os.write(sending, (json.dumps([name, _outcome(work)]) + "\n").encode())
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving) as lines:
        found = dict(json.loads(line) for line in lines)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        names = [name for make in makers for name in make(path)]
        found[names[len(found)]] = f"ended by signal {-status}"
    return found


def _outcome(work: Callable[[], Any]) -> str:
    try:
        work()
    except FeatureStoreError as error:
        return type(error).__name__ if str(error) else "unexpected: no message"
    except BaseException:
        return "unexpected: " + traceback.format_exc()[-1500:]
    return "done"
