"""Several processes on one plan: each is an ordinary build, they share the work by the locks of the store.

The supervisor opens no model. It starts the processes, adds up what they say, and replaces one that dies.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self

from featurestore.errors import ExtractionError, FeatureStoreError, SettingError, StoreError
from featurestore.pipeline.claim import MOST_DEATHS, Attempts
from featurestore.pipeline.deaths import cause_of_death, count_memory_kills, is_of_memory
from featurestore.pipeline.interrupts import Interrupts, unheard
from featurestore.pipeline.job import Executor
from featurestore.pipeline.plan import Job, TrackPlan, is_published
from featurestore.pipeline.report import Progress, TrackDone
from featurestore.pipeline.tally import Tally
from featurestore.pipeline.worker import WorkerConfig, worker_main
from featurestore.spec import FeatureSpec
from featurestore.store import StoreWriter

_PATIENCE = 20.0
"""Seconds that processes have to end in after they were asked to."""

logger = logging.getLogger("featurestore")


@dataclass(eq=False)
class _Worker:
    """A process, and what it has said."""

    config: WorkerConfig
    process: BaseProcess
    connection: Connection
    memory_kills: int | None  # of the system, when it began
    in_vain: int = 0  # processes before it in this place that have died without a track
    spec: FeatureSpec | None = None
    published: float = 0.0  # seconds of audio
    encoded: float = 0.0  # seconds of audio, with tracks that are not finished
    waited_for_audio: float = 0.0  # seconds
    waited_for_store: float = 0.0

    @property
    def device(self) -> str:
        return str(self.config.encoder["device"])


class WorkerPool(Executor):
    """Processes that extract tracks; they are there within its `with` block.

    A process that dies loses the tracks that it has in flight to the others. A track that two processes have died
    with, or that no process is left for, counts as failed. Another process takes the place of a dead one at once,
    unless others go on and the system has killed it for memory, or it is the second in its place that has done
    nothing; and unless as many as there are have come anew without a track between.

    `devices` has that of each process, and may name one several times; `settings` are the other arguments of
    `WindowEncoder`.

    Raises
    ------
    SettingError, ModelError
        On entering, if a process cannot open the model on its device, or their features would not be the same.
    ExtractionError
        On entering, if a process dies before it can begin.
    """

    def __init__(
        self,
        job: Job,
        devices: Sequence[str],
        settings: Mapping[str, Any],
        interrupts: Interrupts,
        tally: Tally,
    ) -> None:
        self.device = ",".join(devices)
        self._job, self._interrupts, self._tally = job, interrupts, tally
        self._context = multiprocessing.get_context("spawn")
        self._counts: Any = self._context.RawArray("B", tally.total)
        self._attempts = Attempts(self._counts)
        self._configs = [
            WorkerConfig(
                job=job,
                encoder={**settings, "device": device},
                number=number,
                processes=len(devices),
                log_level=logger.getEffectiveLevel(),
            )
            for number, device in enumerate(devices)
        ]
        self._workers: list[_Worker] = []
        self._plans: list[TrackPlan] = []
        self._settled: set[str] = set()
        self._in_vain = 0  # processes started anew since a track was processed
        self._last_death = ""
        self._begun = self._ending = False
        self._finished = False  # a process has worked through the plan

    def __enter__(self) -> Self:
        try:
            with self._interrupts.deferred():  # a process that is started by half complains
                for config in self._configs:
                    self._start(config)
            while self._workers and not all(worker.spec for worker in self._workers):
                self._receive(wait([worker.connection for worker in self._workers if not worker.spec]))
            self.spec = self._common_spec()
            self._begun = True
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ask the processes to end, count what they have done until then, and end those that do not."""
        self._end()
        deadline = time.monotonic() + _PATIENCE
        while self._workers and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(FeatureStoreError):  # there is one already that says why
                self._receive(wait([worker.connection for worker in self._workers], left))
        for worker in list(self._workers):
            worker.process.kill()
            self._bury(worker)

    def run(
        self, plans: Sequence[TrackPlan], *, writer: StoreWriter, interrupts: Interrupts, tally: Tally
    ) -> None:
        """Have tracks extracted, all of which are to be done.

        Raises
        ------
        StoreError
            If a process cannot write the store any more.
        """
        self._plans = list(plans)
        mark = time.monotonic()
        with interrupts.deferred():
            for worker in self._workers:
                self._give_plan(worker)
            while self._workers and len(self._settled) < len(plans):
                with interrupts.allowed():
                    ready = wait([worker.connection for worker in self._workers])
                tally.encoding_seconds += (now := time.monotonic()) - mark
                mark = now
                self._receive(ready)
                if self._job.fail_fast and tally.failures:
                    self._end()
            if not (self._job.fail_fast and tally.failures):
                self._settle_rest(writer)

    def _start(self, config: WorkerConfig, in_vain: int = 0) -> None:
        config = replace(config, cautious=bool(in_vain and self._workers))
        ours, theirs = self._context.Pipe()
        process: BaseProcess = self._context.Process(
            target=worker_main, args=(theirs, self._counts, config), daemon=True
        )
        with contextlib.closing(theirs), unheard():
            process.start()
            self._workers.append(_Worker(config, process, ours, count_memory_kills(), in_vain))

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            for worker in self._workers:
                worker.process.terminate()

    def _common_spec(self) -> FeatureSpec:
        (device, spec), *others = [(worker.device, worker.spec) for worker in self._workers if worker.spec]
        for other_device, other in others:
            if differences := spec.differences(other):
                listed = "; ".join(f"`{name}` is {a!r} and {b!r}" for name, (a, b) in differences.items())
                raise SettingError(
                    f"features of {device} and {other_device} would differ ({listed}): choose devices of one kind"
                )
        return spec

    def _receive(self, ready: Sequence[Any]) -> None:
        """Take in one event of each process that has sent one."""
        for worker in [worker for worker in self._workers if worker.connection in ready]:
            try:
                event = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker)
                continue
            match event:
                case logging.LogRecord():
                    logger.handle(event)
                case FeatureSpec():
                    worker.spec = event
                    if self._plans:
                        self._give_plan(worker)
                case TrackDone():
                    self._count(event, worker)
                case Progress():
                    worker.encoded = event.audio_seconds
                    self._add_waits(worker, event)
                    self._notify(event.track)
                case FeatureStoreError():
                    if not self._begun or isinstance(event, StoreError):
                        raise event
                    logger.warning("the process of %s has no use: %s", worker.device, event)

    def _add_waits(self, worker: _Worker, progress: Progress) -> None:
        for name in ("waited_for_audio", "waited_for_store"):
            more = (getattr(progress, name) - getattr(worker, name)) / len(self._configs)
            setattr(self._tally, name, getattr(self._tally, name) + more)
            setattr(worker, name, getattr(progress, name))

    def _give_plan(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):  # it has died, which is heard next
            worker.connection.send(self._plans)

    def _count(self, done: TrackDone, worker: _Worker | None = None) -> None:
        """Count a track once; what one process has skipped another may have at hand."""
        if done.track.track_id in self._settled or (worker is not None and done.outcome == "skipped"):
            return
        self._settled.add(done.track.track_id)
        if worker is not None and done.outcome == "processed":
            worker.published += done.seconds
            self._in_vain = 0
        self._tally.add(done)
        self._notify(done.track.track_id)

    def _notify(self, track_id: str | None) -> None:
        unfinished = sum(worker.encoded - worker.published for worker in self._workers)
        self._tally.notify(track_id, seconds=max(0.0, unfinished))

    def _bury(self, worker: _Worker) -> None:
        """Take a process off that has ended; if it has died, another takes its place."""
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(_PATIENCE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode or 0
        worker.process.close()
        if self._ending:
            return
        if code:
            self._last_death = f"the process of {worker.device} {cause_of_death(code, worker.memory_kills)}"
            if not self._begun:
                if code == -signal.SIGKILL and not (worker.in_vain or is_of_memory(code, worker.memory_kills)):
                    self._start(worker.config, 1)
                    return
                raise ExtractionError(
                    f"{self._last_death}, before it began; a script that uses several processes calls build below "
                    '`if __name__ == "__main__":`'
                )
            logger.warning("%s; others take the tracks that it had at hand", self._last_death)
        elif not worker.config.cautious:
            self._finished = True
        # Short of memory, fewer processes are the cure, but the last one is needed for what the dead have left.
        left = [self._attempts[plan] for plan in self._plans if plan.track.track_id not in self._settled]
        needed = bool(left) if code else any(0 < deaths < MOST_DEATHS for deaths in left)
        in_vain = 0 if worker.published else worker.in_vain + 1
        spared = self._workers and (not code or in_vain > 1 or is_of_memory(code, worker.memory_kills))
        if needed and not spared and self._in_vain < len(self._configs):
            self._in_vain += 1
            self._start(worker.config, in_vain)

    def _settle_rest(self, writer: StoreWriter) -> None:
        """Count the tracks of which no process has said what became of them."""
        if self._last_death:
            StoreWriter(self._job.store, spec=self.spec).close()  # finishes or sweeps what the dead have left
        for plan in self._plans:
            if plan.track.track_id in self._settled:
                continue
            deaths, outcome, error = self._attempts[plan], "failed", None
            if is_published(writer, self._job, plan):
                outcome = "cached"  # its process has died just then, or another build was at it
            elif self._finished and not deaths:
                outcome = "skipped"
            else:
                reason = (
                    f"{deaths} processes ended while they had it at hand"
                    if deaths >= MOST_DEATHS
                    else "no process is left to extract it"
                )
                error = ExtractionError(f"{plan.track.path}: {reason}; {self._last_death}")
                logger.info("%s failed: %s", plan.track.track_id, error)
            self._count(TrackDone(track=plan.track, outcome=outcome, planned=plan.seconds, error=error))
