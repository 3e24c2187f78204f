"""Executors: who encodes for a build, this process or several, and how far decoding may be ahead of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from featurestore.errors import MissingDependencyError, SettingError
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import Executor, LocalExecutor
from featurestore.pipeline.plan import Job
from featurestore.pipeline.processes import WorkerPool
from featurestore.pipeline.tally import Tally

_MOST_WORKERS = 8
"""Decoders that a card gets without being asked for: some 5,000 times real time."""

_CARD_AHEAD_MB = 512
"""Megabytes of decoded audio that wait for a card: 1.5 hours at 24 kHz."""


@contextmanager
def open_executor(
    job: Job,
    device: str,
    processes: int,
    scheduler: str | None,
    workers: int | None,
    ahead_mb: int | None,
    settings: dict[str, Any],
    interrupts: Interrupts,
    tally: Tally,
) -> Iterator[Executor]:
    """Open an encoder in this process, or several processes for several devices, or have a Dask cluster do it."""
    with _needed("building a store", "extract"):
        from featurestore.encode import WindowEncoder
        from featurestore.encode.device import resolve_devices

    devices = resolve_devices(device) if scheduler is None else [device]
    loaded = not isinstance(settings["model"], str | os.PathLike | None)
    if loaded and device == "auto":
        devices = devices[:1]
    if loaded and (scheduler or len(devices) * processes > 1):
        raise SettingError(
            "several processes (`device`, `processes`, `scheduler`) need the name or the folder of a `model`, "
            "not a loaded one"
        )
    if scheduler is not None and not job.dry_run:
        if "," in device or device == "auto":
            raise SettingError("`device` is that of each worker of the `scheduler`: cpu, cuda, cuda:N or mps")
        job = settle_ahead(job, workers, ahead_mb, devices * processes, tally.total)
        settings = {**settings, "device": device}
        with _needed("`scheduler`", "dask"):
            from featurestore.pipeline.dask_executor import DaskExecutor
        with DaskExecutor(job, scheduler, settings, processes=processes) as executor:
            yield executor
        return
    devices = [name for name in devices for _ in range(processes)][: max(1, tally.total)]
    job = settle_ahead(job, workers, ahead_mb, devices, tally.total)
    if len(devices) == 1 or job.dry_run:
        yield LocalExecutor(job, WindowEncoder(device=devices[0], **settings))
        return
    with WorkerPool(job, devices, settings, interrupts, tally) as pool:
        yield pool


def settle_ahead(job: Job, workers: int | None, ahead_mb: int | None, devices: Sequence[str], tracks: int) -> Job:
    """Settle how far decoding may be ahead of the model."""
    workers = workers or default_workers(devices[0], len(devices))
    if ahead_mb is None:
        ahead_mb = _CARD_AHEAD_MB if devices[0].startswith("cuda") else job.ahead_mb
    return replace(job, workers=min(workers, tracks), ahead_mb=ahead_mb)


def default_workers(device: str, processes: int) -> int:
    """Return how many tracks are decoded at a time for one of the processes that encode on this machine.

    One worker keeps up with any CPU, whose cores are the model's. A card needs more, as one core decodes FLAC and
    MP3 at some 600 times real time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // processes)) if device.startswith("cuda") else 1


@contextmanager
def _needed(what: str, extra: str) -> Iterator[None]:
    """Say how to install what is imported in the block."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{what} needs {error.name}: pip install 'featurestore[{extra}]'") from error
