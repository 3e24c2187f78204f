"""One process of several on one plan: an ordinary extraction, whose counts and log go to the supervisor.

When its encoder is open, it sends the spec of its features and is given the plan. From then on it sends, and asks
for nothing: a TrackDone for each track, a Progress on the way, log records, and the error that ends it, if any.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, MutableSequence
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from featurestore.errors import FeatureStoreError
from featurestore.pipeline.claim import Attempts
from featurestore.pipeline.deaths import die_first
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import LocalExecutor
from featurestore.pipeline.plan import Job, TrackPlan
from featurestore.pipeline.tally import Tally
from featurestore.store import StoreWriter

if TYPE_CHECKING:
    from featurestore.encode import WindowEncoder

logger = logging.getLogger("featurestore")


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a process is to do."""

    job: Job
    encoder: Mapping[str, Any]  # the arguments of `WindowEncoder`, the device among them
    number: int = 0  # each process begins at another place of the plan
    processes: int = 1  # that share the cores
    log_level: int = logging.WARNING
    # Whether the one before it has died in vain: it may be the device that fails, so the tracks with which a
    # process has died are left to the others.
    cautious: bool = False


class _Events:
    """The way to the supervisor; what several threads send does not get mixed up, nor cut by an interrupt."""

    def __init__(self, connection: Connection, interrupts: Interrupts) -> None:
        self._connection, self._interrupts = connection, interrupts
        self._lock = threading.Lock()

    def put_nowait(self, event: Any) -> None:
        """Send an event; the name is that of a queue, which log handlers know."""
        main = threading.current_thread() is threading.main_thread()
        with (
            self._interrupts.deferred() if main else contextlib.nullcontext(),
            self._lock,
            contextlib.suppress(OSError),  # the supervisor has gone, and this process will be told to end
        ):
            self._connection.send(event)


def open_encoder(config: WorkerConfig) -> WindowEncoder:
    """Open the encoder of a process, which has its share of the cores."""
    import torch

    from featurestore.encode import WindowEncoder

    torch.set_num_threads(max(1, torch.get_num_threads() // config.processes))
    encoder = WindowEncoder(**config.encoder)
    if encoder.device.type == "cuda":
        torch.cuda.set_device(encoder.device)
    return encoder


def worker_main(
    connection: Connection,
    counts: MutableSequence[int],
    config: WorkerConfig,
    open_encoder: Callable[[WorkerConfig], WindowEncoder] = open_encoder,
) -> None:
    """Work on the plan until it is done, or SIGTERM says to end, or the supervisor has gone.

    `connection` is the pipe to the supervisor, `counts` the memory of `Attempts`, shared with all processes.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    die_first()
    interrupts = Interrupts()
    events = _Events(connection, interrupts)
    logger.handlers, logger.propagate = [QueueHandler(events)], False  # type: ignore[arg-type]
    logger.setLevel(config.log_level)
    try:
        # Until the encoder is open, SIGTERM ends the process at once: there is nothing to clean up.
        attempts = Attempts(counts)
        executor = LocalExecutor(config.job, open_encoder(config), attempts)
        events.put_nowait(executor.spec)
        with interrupts:
            plans: list[TrackPlan] = connection.recv()
            first = config.number * len(plans) // config.processes
            plans = [p for p in plans[first:] + plans[:first] if not (config.cautious and attempts[p])]
            tally = Tally(listener=events.put_nowait, on_done=events.put_nowait)
            with (
                interrupts.deferred(),
                StoreWriter(config.job.store, spec=executor.spec) as writer,
                interrupts.allowed(),
            ):
                executor.run(plans, writer=writer, interrupts=interrupts, tally=tally)
    except FeatureStoreError as error:
        events.put_nowait(error)
        sys.exit(1)
    except (KeyboardInterrupt, EOFError):
        pass  # the supervisor knows, or has gone


def _end_with_parent() -> None:
    """End this process, in order, when the one that has started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
