"""The process of one device of several: asks for tracks, extracts them, and tells what became of them.

What it sends:

- ("ready", spec) once the model is open, answered by True to begin; or ("refused", error)
- ("next",) for a track, answered by a TrackPlan, or None if there is none for now
- ("told", tally) on the way
- ("settled", track_id, failures, warnings, tally) when nothing is left to do about a track
- ("idle",) when it has no track at hand, answered by True if there are more
- ("stopped", message) if the store cannot be written
- ("log", level, message)
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from featurestore.errors import FeatureStoreError, StoreError
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import Job
from featurestore.pipeline.plan import TrackPlan
from featurestore.pipeline.report import Tally
from featurestore.store import StoreWriter

logger = logging.getLogger("featurestore")


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a process is to do.

    Parameters
    ----------
    job : Job
        What is to be built.
    extractor : mapping
        Arguments of `WindowEncoder`, the device among them.
    sharing : int
        Processes that share the cores.
    log_level : int
        Below which nothing is logged.
    """

    job: Job
    extractor: Mapping[str, Any]
    sharing: int = 1
    log_level: int = logging.WARNING


class _Line:
    """The line to the parent; several threads may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock:
            self._connection.send(message)

    def ask(self, *message: Any) -> Any:
        self.send(*message)
        return self._connection.recv()


class _Log(logging.Handler):
    """Log records to the parent."""

    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # whoever waits for an answer will hear that the parent has gone
            self._line.send("log", record.levelno, record.getMessage())


def work(connection: Connection, orders: Orders) -> None:
    """What the process does, until the parent has no more tracks, asks it to stop by SIGTERM, or has gone.

    Parameters
    ----------
    connection : Connection
        To the parent, both ways.
    orders : Orders
        What to do.
    """
    line = _Line(connection)
    logger.handlers, logger.propagate = [_Log(line)], False
    logger.setLevel(orders.log_level)
    with Interrupts() as interrupts:
        try:
            _extract(line, orders, interrupts)
        except StoreError as error:
            line.send("stopped", str(error))
        except (KeyboardInterrupt, EOFError, ConnectionError):
            pass  # the parent knows


def _extract(line: _Line, orders: Orders, interrupts: Interrupts) -> None:
    try:
        import torch

        from featurestore.encode import WindowEncoder

        torch.set_num_threads(max(1, torch.get_num_threads() // orders.sharing))
        extractor = WindowEncoder(**orders.extractor)
        if extractor.device.type == "cuda":
            torch.cuda.set_device(extractor.device)
    except FeatureStoreError as error:
        line.send("refused", error)
        return
    spec = extractor.spec(dtype=orders.job.dtype, codec=orders.job.codec)
    if not line.ask("ready", spec):
        return
    tally = Tally(listener=lambda _: line.send("told", _sent(tally)))
    settled = partial(_settle, line, tally)
    with interrupts.held(), StoreWriter(orders.job.store, spec=spec) as writer:
        extraction = orders.job.extraction(extractor, writer, interrupts, tally, settled)
        with interrupts.let_in():
            more = True
            while more:
                extraction.run(_given(line))
                more = line.ask("idle")


def _given(line: _Line) -> Iterator[TrackPlan]:
    """Tracks that the parent gives."""
    while (plan := line.ask("next")) is not None:
        yield plan


def _settle(line: _Line, tally: Tally, plan: TrackPlan) -> None:
    failures = [failure for failure in tally.failures if failure.track_id == plan.track.track_id]
    warnings = [warning for warning in tally.warnings if warning.track_id == plan.track.track_id]
    line.send("settled", plan.track.track_id, failures, warnings, _sent(tally))


def _sent(tally: Tally) -> Tally:
    """The counts alone."""
    return replace(tally, listener=None, failures=[], warnings=[], facts={})
