"""A Dask cluster extracts: chunks of tracks are its tasks, and its workers publish into the store themselves.

Each worker opens the model once. Nothing but plans and counts goes over the network: audio is read, and features
are written, where the worker is, so that all of them must see the source and the store under the same paths.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from distributed import (
    Future,
    KilledWorker,
    Worker,
    WorkerPlugin,
    as_completed,
    get_worker,
    wait,
)

from featurestore.errors import ExtractionError, FeatureStoreError, StoreAccessError, StoreError
from featurestore.pipeline.dask_cluster import LOCAL, client_of, local_cluster
from featurestore.pipeline.extraction import PACK_EVERY
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import Executor, LocalExecutor
from featurestore.pipeline.plan import Job, TrackPlan
from featurestore.pipeline.report import TrackDone
from featurestore.pipeline.tally import Tally
from featurestore.pipeline.worker import WorkerConfig, open_encoder
from featurestore.spec import FeatureSpec
from featurestore.store import StoreWriter
from featurestore.store.creation import is_vacant

if TYPE_CHECKING:
    from featurestore.encode import WindowEncoder

_MOST_OF_A_CHUNK = 32
"""Tracks: a worker that dies loses the one at hand, but what it has done of its chunk is looked at again."""

_CHUNKS_EACH = 8
"""Chunks for each worker, at least, so that none is left with much to do while others have nothing."""

_PATIENCE = 20.0
"""Seconds that workers have to give back the tracks at hand."""

logger = logging.getLogger("featurestore")


class DaskExecutor(Executor):
    """Workers of a Dask cluster that extract tracks; they can do so within its `with` block.

    `scheduler` is the address of one, or "local", for a cluster of so many `processes`; `settings` are what
    `WindowEncoder` is made with.

    Raises
    ------
    SettingError
        On entering, if there is no such cluster, or it has no worker.
    ModelError, SettingError
        On entering, if a worker cannot open the model.
    """

    def __init__(
        self,
        job: Job,
        scheduler: str,
        settings: Mapping[str, Any],
        *,
        processes: int,
        open_encoder: Callable[[WorkerConfig], WindowEncoder] = open_encoder,
    ) -> None:
        self._scheduler, self._processes, self._open_encoder = scheduler, processes, open_encoder
        self._job = replace(job, store=job.store.absolute())
        self._settings = _with_full_paths(settings)
        self.device = f"{settings['device']} of Dask {scheduler}"
        self._name = f"featurestore-{uuid.uuid4().hex[:8]}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            cluster: Any = self._scheduler
            if self._scheduler == LOCAL:
                cluster = stack.enter_context(local_cluster(self._processes))
            self._client = stack.enter_context(client_of(cluster))
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
            hosts = [worker["host"] for worker in workers]
            self._workers = len(hosts)
            cuda = str(self._settings["device"]).startswith("cuda")
            self._resources = (
                {"GPU": 1} if cuda and any("GPU" in worker["resources"] for worker in workers) else {}
            )
            config = WorkerConfig(
                job=self._job, encoder=self._settings, processes=max(hosts.count(host) for host in hosts)
            )
            self._client.register_plugin(_TrackExtractor(config, self._open_encoder), name=self._name)
            stack.callback(self._client.unregister_worker_plugin, self._name)
            self.spec = self._submit(_spec_of_worker, "open the model", ()).result()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self, plans: Sequence[TrackPlan], *, writer: StoreWriter, interrupts: Interrupts, tally: Tally
    ) -> None:
        """Have tracks extracted, all of which are to be done.

        A chunk whose worker dies is given to another one, as often as the scheduler allows; then each of its
        tracks is a task of its own, and one that goes on to be the end of workers fails.

        Raises
        ------
        StoreError
            If a worker cannot write the store.
        """
        size = max(1, min(_MOST_OF_A_CHUNK, len(plans) // (_CHUNKS_EACH * self._workers)))
        chunks = {
            self._submit_chunk(plans[first : first + size]): plans[first : first + size]
            for first in range(0, len(plans), size)
        }
        mark, unpacked = time.monotonic(), 0
        with interrupts.deferred():
            try:
                completed = as_completed(list(chunks), loop=self._client.loop)
                while chunks and not (self._job.fail_fast and tally.failures):
                    with interrupts.allowed():
                        future = next(completed)
                    tally.encoding_seconds += (now := time.monotonic()) - mark
                    mark = now
                    found, again = _outcomes(future, chunks.pop(future))
                    for chunk in again:
                        chunks[later := self._submit_chunk(chunk)] = chunk
                        completed.add(later)
                    unpacked += _count(found, tally)
                    if unpacked >= PACK_EVERY:
                        writer.pack(wait=0)
                        unpacked = 0
            finally:
                self._end(chunks, tally)

    def _submit_chunk(self, plans: Sequence[TrackPlan]) -> Future:
        whole = [replace(plan, track=replace(plan.track, path=plan.track.path.absolute())) for plan in plans]
        return self._submit(_extract_chunk, "extract", (whole,))

    def _submit(self, function: Any, name: str, arguments: tuple[Any, ...]) -> Future:
        """Submit a task; the dashboard shows the name."""
        key = (f"featurestore: {name}", uuid.uuid4().hex)
        return self._client.submit(
            function, self._name, *arguments, key=key, pure=False, resources=self._resources
        )

    def _end(self, chunks: Mapping[Future, Sequence[TrackPlan]], tally: Tally) -> None:
        """Have workers give back what they have at hand, and count what they have done until then."""
        if not chunks:
            return
        try:
            self._client.run(_end_worker, self._name, on_error="ignore")
            with self._client.as_current():
                wait(list(chunks), timeout=_PATIENCE)
        except (TimeoutError, OSError) as error:
            logger.warning("the workers of %s may still be at it: %s", self._scheduler, error)
        for future, plans in chunks.items():
            if future.status == "finished":
                _count(_outcomes(future, plans)[0], tally)
        self._client.cancel(list(chunks))


class _TrackExtractor(WorkerPlugin):  # type: ignore[misc]
    """What a worker needs for its tasks: an encoder and a writer of the store, opened by the first one."""

    def __init__(self, config: WorkerConfig, open_encoder: Callable[[WorkerConfig], WindowEncoder]) -> None:
        self._config, self._open_encoder = config, open_encoder

    def setup(self, worker: Worker) -> None:
        """Be ready for tasks."""
        self._address = worker.address
        self._turn = threading.Lock()  # the threads of a worker take turns: there is one model
        self._interrupts = Interrupts()
        self._executor: LocalExecutor | None = None
        self._writer: StoreWriter | None = None
        self.ended = False

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002
        """Leave nothing behind."""
        self.end()
        with self._turn:
            if self._writer is not None:
                self._writer.close()

    def end(self) -> None:
        """Give back the tracks at hand, and do nothing from now on."""
        self.ended = True
        self._interrupts.ask()

    @property
    def _opened(self) -> LocalExecutor:
        if self._executor is None:
            self._executor = LocalExecutor(self._config.job, self._open_encoder(self._config))
        return self._executor

    def spec(self) -> FeatureSpec:
        """Return the settings of the features."""
        with self._turn:
            return self._opened.spec

    def extract(self, plans: Sequence[TrackPlan]) -> list[TrackDone]:
        """Extract tracks, and return what became of them: of all, unless this is told to end."""
        found: list[TrackDone] = []
        with self._turn:
            if self.ended:
                return found
            executor, store = self._opened, self._config.job.store
            if self._writer is None:
                if is_vacant(store):
                    raise StoreAccessError(
                        f"the worker {self._address} sees no store at {store}: all workers need the same file "
                        "system, and the path that it has there"
                    )
                self._writer = StoreWriter(store, spec=executor.spec)
            numbered = [replace(plan, number=number) for number, plan in enumerate(plans)]
            tally = Tally(on_done=found.append)
            try:
                executor.run(numbered, writer=self._writer, interrupts=self._interrupts, tally=tally)
            except KeyboardInterrupt:
                self.ended = True
        return found


def _spec_of_worker(name: str) -> FeatureSpec:
    spec: FeatureSpec = get_worker().plugins[name].spec()
    return spec


def _extract_chunk(name: str, plans: Sequence[TrackPlan]) -> list[TrackDone]:
    found: list[TrackDone] = get_worker().plugins[name].extract(plans)
    return found


def _end_worker(name: str, dask_worker: Worker) -> None:
    dask_worker.plugins[name].end()


def _outcomes(
    future: Future, plans: Sequence[TrackPlan]
) -> tuple[Sequence[TrackDone], Sequence[Sequence[TrackPlan]]]:
    """Return what became of the tracks of a chunk, and the chunks to try again."""
    try:
        return future.result(), ()
    except StoreError:
        raise
    except Exception as error:
        logger.info("a chunk of %d tracks failed: %s", len(plans), error)
        if future.cancelled():
            raise StoreAccessError(f"the Dask cluster has dropped the work: {error}") from error
        if len(plans) > 1:
            return (), [[plan] for plan in plans]
        (plan,) = plans
        if isinstance(error, KilledWorker):
            deaths = error.allowed_failures + 1
            error = ExtractionError(f"{plan.track.path}: {deaths} workers ended while they had it at hand")
        elif not isinstance(error, FeatureStoreError):
            error = ExtractionError(f"{plan.track.path}: {type(error).__name__}: {error}")
        return [TrackDone(track=plan.track, outcome="failed", planned=plan.seconds, error=error)], ()


def _count(found: Sequence[TrackDone], tally: Tally) -> int:
    """Count tracks, and return how many of them are new in the store."""
    for done in found:
        tally.add(done)
        tally.notify(done.track.track_id)
    return sum(done.outcome == "processed" for done in found)


def _with_full_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make the folder of a model one that a worker of another working directory finds."""
    model = settings["model"]
    return {**settings, "model": Path(model).absolute() if model is not None and Path(model).is_dir() else model}
