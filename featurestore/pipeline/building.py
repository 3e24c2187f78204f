"""build: a source of audio, a model and a store become a report."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.audio import discover
from featurestore.errors import SettingError
from featurestore.pipeline.bar import AUTO, auto_bar
from featurestore.pipeline.callbacks import BuildCallback, follow
from featurestore.pipeline.executors import open_executor, settle_ahead
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import Executor, LocalExecutor, check_tracks, run_job
from featurestore.pipeline.one_file import build_file
from featurestore.pipeline.orphans import source_root
from featurestore.pipeline.plan import Job
from featurestore.pipeline.recorded import (
    DEFAULT_LEVEL,
    fits,
    lower_level,
    recorded_ids,
    recorded_level,
    recorded_settings,
)
from featurestore.pipeline.report import STAGES, BuildReport, Progress
from featurestore.pipeline.run_record import recording
from featurestore.pipeline.tally import Tally
from featurestore.pipeline.upgrade import remove_replaced, upgrading, with_layers
from featurestore.shard import Shard
from featurestore.spec import FeatureSpec, check_count, kinds_of_level
from featurestore.store import StoreReader
from featurestore.store.creation import is_vacant
from featurestore.store.hdf5.layout import is_hdf5
from featurestore.store.paths import resolve_store_path
from featurestore.store.runs import failures_of, read_runs
from featurestore.windows import check_windows

if TYPE_CHECKING:
    from featurestore.encode import WindowEncoder
    from featurestore.models import Encoder


def build(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    model: str | Path | Encoder | None = None,
    revision: str | None = None,
    device: str = "cpu",
    processes: int = 1,
    scheduler: str | None = None,
    feature_level: str | None = None,
    workers: int | None = None,
    ahead_mb: int | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    segment_duration: float | str = "auto",
    overlap: float | None = None,
    dtype: str | None = None,
    codec: str | None = None,
    force: bool = False,
    upgrade: bool = False,
    prune: bool = False,
    seal: bool | None = None,
    dry_run: bool = False,
    limit: int | None = None,
    shard: str | None = None,
    retry_failed: bool = False,
    fail_fast: bool = False,
    wait_for_others: float = 60.0,
    dataset: str | None = None,
    id_from: str | None = None,
    file_pattern: str | None = None,
    exclude: Sequence[str] = (),
    mixed_precision: bool = True,
    precision: str | None = None,
    oom_recovery: bool = True,
    extractor: WindowEncoder | None = None,
    progress: Callable[[Progress], None] | str | None = AUTO,
    callbacks: Sequence[BuildCallback] = (),
) -> BuildReport:
    """Extract the features of a collection of audio into a store.

    A store remembers how it was built: `model`, `revision`, `feature_level`, `layers`, windows, `precision`,
    `dtype` and `codec` come from it where they are not given. Tracks that it has, of the same settings and the
    same audio, are left alone; any number of builds may work on one source and store at the same time. Ctrl-C and
    SIGTERM end the build within moments; what is published stays, and the same call goes on from there.

    Parameters
    ----------
    source : path-like
        Folder, file, glob, or list of files, as in `featurestore.audio.discover`.
    store : path-like
        The store; made if it does not exist. If it ends in ``.h5`` or ``.hdf5``: one file of HDF5, which is put in
        its place when the build has ended.
    model : str, Path or Encoder, optional
        Name on the hub, local folder, or a loaded model; that of the store, or m-a-p/MERT-v1-95M for a new one. It
        is not opened if nothing is to be done.
    revision : str, optional
        Commit or tag on the hub; by default the one that the store was built with.
    device : str
        "cpu", "cuda" (the first card), "cuda:N", "mps"; several of them, "cuda:0,cuda:1", for a process each; or
        "auto": every CUDA card (the first if the model is loaded), or else mps, or else the CPU.
    processes : int
        Processes for each device, which share its memory and the cores. Several processes need a main module that
        can be imported (``if __name__ == "__main__":``), and a `model` that is a name or a folder.
    scheduler : str, optional
        Have the workers of a Dask cluster extract: the address of its scheduler ("tcp://host:8786"), or "local"
        for one of this machine, with `processes` workers. All of them need to see the source and the store.
    feature_level : {"all", "segments", "aggregated"}, optional
        What is stored: raw, segments and aggregated; the last two; the last one. Segments, for a new store.
    workers : int, optional
        How many tracks are decoded at a time, ahead of the model, for each process that encodes: one by a thread,
        several by processes. By default 1, and on a card as many as there are cores for it, at most 8.
    ahead_mb : int, optional
        Megabytes of decoded audio that may wait for the model, in each process. By default 64, and on a card 512.
    layers : sequence of int, optional
        The hidden states to store; all of them, for a new store.
    batch_size : int, optional
        Windows per pass of the model; by default chosen for the device.
    segment_duration : float, "auto" or "full"
        Windows, as in `featurestore.FeatureExtractor`; "auto" in a store of this model is what it was built with.
    overlap : float, optional
        Share of a window that the next one repeats, in [0, 1); by default as in `featurestore.FeatureExtractor`.
    dtype : {"float32", "float16"}, optional
        Type of the stored numbers; float32, for a new store.
    codec : {"none", "zstd", "lz4", "bitround"}, optional
        How they are compressed; "bitround" rounds them to 10 bits of mantissa first.
    force : bool
        Extract again what is there.
    upgrade : bool
        Allow a higher `feature_level`, or more `layers`, than the store has: its tracks are extracted again. For
        layers, a store of all of them is built beside it, and takes its place when it has every track.
    prune : bool
        Remove tracks whose files were in the source and are gone. A file that was moved keeps its track.
    seal : bool, optional
        Whether tracks are moved into bundles of thousands at the end (`FeatureStore.pack`); by default when more
        than 10,000 are in folders, and not compressed.
    dry_run : bool
        Find out what is to be done, and write nothing at all.
    limit : int, optional
        Only the first tracks of the source.
    shard : str, optional
        "2/8": only the second of eight parts of the source, by a hash of the track ids, which is the same on all
        machines; "auto": the part of this task of a job array of Slurm.
    retry_failed : bool
        Only the tracks that have failed in the last runs, as `FeatureStore.failures` lists them.
    fail_fast : bool
        Stop at the first track that fails.
    wait_for_others : float
        Seconds that tracks are waited for at the end which other builds have. Those that are neither done nor free
        by then are left undone, and named in the report.
    dataset : str, optional
        Prefix of the track ids; by default that of the last run with this source.
    id_from : {"path", "stem"}, optional
        What becomes the track id: the relative path without suffix, or the name of the file alone; by
        default as in the last run with this source, or "path".
    file_pattern : str, optional
        Only files whose name matches this glob.
    exclude : sequence of str
        No files whose name, or path within the source, matches one of these globs.
    mixed_precision, precision, oom_recovery
        As in `featurestore.FeatureExtractor`.
    extractor : FeatureExtractor, optional
        Used as it is; model, device, layers, windows, batch size and precision are its own, and not given here.
    progress : callable, "auto" or None
        Called with a `Progress` whenever something has changed, in the calling thread. "auto": a progress bar on a
        terminal or in a notebook, and nothing elsewhere; None: nothing.
    callbacks : sequence of BuildCallback
        Told when the build begins, goes on, has done a track, and ends.

    Returns
    -------
    BuildReport
        What was done; failures of single tracks are in it.

    Raises
    ------
    SettingError, MissingDependencyError, SourceError, ModelError
        Before any work.
    NotAStoreError, StoreVersionError
        If something else is at the path of the store, before any work.
    SpecMismatchError
        If the store holds features of other settings, or a lower level or fewer layers without `upgrade`, before
        any work.
    StoreAccessError
        If the features cannot fit on the disk, or the store cannot be written, before any work.
    BuildStoppedError
        If the store cannot be written any more on the way, or the card fails; it carries the report.

    Examples
    --------
    >>> report = build("music", "spectra.zarr", model="logmel", feature_level="segments", layers=[0, 2])
    >>> report.processed, report.failed
    (3, 0)
    >>> FeatureStore("spectra.zarr").aggregated(layer=0).shape
    (3, 168)

    The same call leaves alone what is there:

    >>> report = build("music", "spectra.zarr", model="logmel", feature_level="segments", layers=[0, 2])
    >>> report.processed, report.cached
    (0, 3)
    """
    given = dict(locals())
    if isinstance(progress, str):
        if progress != AUTO:
            raise SettingError(f"`progress` must be a function, {AUTO} or None, not {progress!r}")
        with auto_bar() as bar:
            return build(**{**given, "progress": bar})
    at = resolve_store_path(store)
    if is_hdf5(at) and not at.is_dir() and not dry_run:
        return build_file(at, build, given)
    settings = {
        "model": model,
        "revision": revision,
        "batch_size": batch_size,
        "mixed_precision": mixed_precision,
        "precision": precision,
        "oom_recovery": oom_recovery,
        "segment_duration": segment_duration,
        "overlap": overlap,
        "layers": layers,
    }
    if extractor is None:
        if batch_size is not None:
            check_count("batch_size", batch_size)
        check_windows(segment_duration, overlap)
    else:
        _check_defaults({**settings, "device": device, "processes": processes, "scheduler": scheduler})
    if workers is not None:
        check_count("workers", workers)
    if ahead_mb is not None:
        check_count("ahead_mb", ahead_mb)
    check_count("processes", processes)
    if limit is not None:
        check_count("limit", limit)
    part = None if shard is None else Shard.parse(shard)
    if not wait_for_others >= 0:
        raise SettingError(f"`wait_for_others` must be a number of seconds, 0 or more, not {wait_for_others!r}")
    kinds_of_level(feature_level or DEFAULT_LEVEL)
    FeatureSpec.for_arrays(layers=1, dim=1, dtype=dtype or "float32", codec=codec or "none")  # as a store can have
    tally = Tally(listener=progress)
    tally.facts.update(dry_run=dry_run, store=str(store), feature_level=feature_level or DEFAULT_LEVEL)
    with recording(at, given, tally), Interrupts() as interrupts, follow(callbacks, tally, given):
        try:
            tally.enter(STAGES[0])
            known = [] if is_vacant(at) else read_runs(at)
            recorded = recorded_ids(known, source)
            dataset = recorded[0] if dataset is None else dataset
            id_from = recorded[1] if id_from is None else id_from
            excluded: list[str] = []
            tracks = discover(
                source,
                id_from=id_from,
                file_pattern=file_pattern,
                exclude=exclude,
                dataset=dataset,
                excluded=excluded,
            )
            root, found = source_root(source, tracks), len(tracks)
            if retry_failed:
                failed = {failure["track_id"] for failure in failures_of(known)}
                tracks = [track for track in tracks if track.track_id in failed]
            tracks = [track for track in tracks if part is None or part.holds(track.track_id)][:limit]
            if retry_failed:
                tally.waiting = {track.track_id for track in tracks}
                given["retried"] = sorted(tally.waiting)
            given.update(dataset=dataset, id_from=id_from, shard=part and str(part))
            given["left_out"] = {"excluded": excluded, "not_chosen": found - len(tracks)}
            tally.total = len(tracks)
            tally.enter("opening the model")
            there = open_existing(at)
            had = None if there is None else recorded_level(there)
            level = feature_level or had or DEFAULT_LEVEL
            tally.facts["feature_level"] = level
            lower = lower_level(had, level)
            job = Job(
                store=at,
                kinds=kinds_of_level(level),
                root=None if retry_failed or limit or part else root,
                prune=prune,
                seal=seal,
                refused={} if upgrade or lower is None else {"feature_level": (lower, level)},
                dtype=dtype or ("float32" if there is None else there.spec.dtype),
                codec=codec or ("none" if there is None else there.spec.codec),
                force=force,
                dry_run=dry_run,
                fail_fast=fail_fast,
                dataset=dataset,
                wait_for_others=wait_for_others,
            )
            if extractor is not None:
                job = settle_ahead(job, workers, ahead_mb, [str(extractor.device)], tally.total)
                run_job(job, tracks, there, LocalExecutor(job, extractor), interrupts, tally)
                return tally.report()
            settings.update(recorded_settings(there, settings))
            checked = None
            with ExitStack() as stack:
                if there is not None:
                    remove_replaced(there)
                    union = with_layers(there, layers)
                    if union is not None and (upgrade or union != there.spec.layers):
                        settings["layers"] = union
                    if union is not None and union != there.spec.layers:
                        refused = {} if upgrade else {"layers": (list(there.spec.layers), list(union))}
                        job = replace(job, refused={**job.refused, **refused})
                        job, there = stack.enter_context(upgrading(job, there, tracks, interrupts, tally))
                if there is not None and fits(there.spec, job, settings):
                    checked = check_tracks(job, tracks, there, there.spec, tally)
                    if not any(plan.to_do for plan in checked):
                        run_job(job, tracks, there, Executor(there.spec), interrupts, tally, checked=checked)
                        return tally.report()
                    tally.enter("opening the model")
                opened = open_executor(
                    job, device, processes, scheduler, workers, ahead_mb, settings, interrupts, tally
                )
                executor = stack.enter_context(opened)
                run_job(job, tracks, there, executor, interrupts, tally, checked=checked)
        except KeyboardInterrupt:
            tally.interrupted = True
        return tally.report()


def _check_defaults(settings: Mapping[str, Any]) -> None:
    """Raise SettingError if one of these is given, of which an extractor has its own."""
    parameters = inspect.signature(build).parameters
    defaults = {name: parameters[name].default for name in settings}
    given = [
        x
        for x, value in settings.items()
        if value is not defaults[x] and (defaults[x] is None or value != defaults[x])
    ]
    if given:
        raise SettingError(
            f"an extractor has its own {', '.join(f'`{x}`' for x in given)}: make another, or leave them out"
        )


def open_existing(path: Path) -> StoreReader | None:
    """Open the store at a path; None if one is to be made there."""
    return None if is_vacant(path) else StoreReader(path)
