"""build: a source of audio, a model and a store become a report."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore import __version__
from featurestore.audio import AudioFile, discover
from featurestore.errors import (
    BuildStoppedError,
    CorruptTrackError,
    MissingDependencyError,
    SettingError,
    SpecMismatchError,
    StoreError,
    TrackNotFoundError,
)
from featurestore.pipeline.extraction import Extraction
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.plan import TrackPlan, Wanted, bytes_needed, check_room, free_bytes, plan_tracks
from featurestore.pipeline.report import BuildReport, Progress, Tally
from featurestore.spec import FeatureSpec, kinds_of_level
from featurestore.store import FeatureStore, StoreWriter
from featurestore.store.files import naming_the_store
from featurestore.windows import hop_samples, window_samples

if TYPE_CHECKING:
    from featurestore.extract import FeatureExtractor
    from featurestore.models import Encoder

DEFAULT_MODEL = "m-a-p/MERT-v1-95M"
_PACK_WAIT = 60.0  # seconds that the end of a build waits for another writer's packing

logger = logging.getLogger("featurestore")


def build(
    source: str | os.PathLike[str],
    store: str | os.PathLike[str],
    *,
    model: str | Path | Encoder = DEFAULT_MODEL,
    revision: str | None = None,
    device: str = "cpu",
    feature_level: str = "all",
    workers: int = 1,
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    segment_duration: float = 5.0,
    overlap: float = 0.5,
    dtype: str = "float32",
    codec: str = "none",
    force: bool = False,
    dry_run: bool = False,
    limit: int | None = None,
    fail_fast: bool = False,
    dataset: str | None = None,
    id_from: str = "path",
    file_pattern: str | None = None,
    mixed_precision: bool = True,
    precision: str | None = None,
    oom_recovery: bool = True,
    extractor: FeatureExtractor | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Extract the features of a collection of audio into a store.

    Tracks that the store has, of the same settings and the same audio, are left alone; any number of builds may
    work on one source and store at the same time. Ctrl-C and SIGTERM end the build within moments; what is
    published stays, and the same call goes on from there.

    Parameters
    ----------
    source : path-like
        Folder, file, glob, or list of files, as in `featurestore.audio.discover`.
    store : path-like
        The store; made if it does not exist.
    model : str, Path or Encoder
        Name on the hub, local folder, or a loaded model.
    revision : str, optional
        Commit or tag on the hub; by default the one that the store was built with.
    device : str
        "cpu", "cuda", "cuda:N", "mps" or "auto".
    feature_level : {"all", "segments", "aggregated"}
        What is stored: raw, segments and aggregated; the last two; the last one.
    workers : int
        Threads that decode ahead, and tracks that they may be ahead.
    layers : sequence of int, optional
        The hidden states to store; all by default.
    batch_size : int, optional
        Windows per pass of the model; by default chosen for the device.
    segment_duration : float
        Length of a window, seconds.
    overlap : float
        Share of a window that the next one repeats, in [0, 1).
    dtype : {"float32", "float16"}
        Type of the stored numbers.
    codec : {"none", "zstd", "lz4", "bitround"}
        How they are compressed; "bitround" rounds them to 10 bits of mantissa first.
    force : bool
        Extract again what is there.
    dry_run : bool
        Find out what is to be done, and write nothing at all.
    limit : int, optional
        Only the first tracks of the source.
    fail_fast : bool
        Stop at the first track that fails.
    dataset : str, optional
        Prefix of the track ids.
    id_from : {"path", "stem"}
        What becomes the track id: the relative path without suffix, or the name of the file alone.
    file_pattern : str, optional
        Only files whose name matches this glob.
    mixed_precision, precision, oom_recovery
        As in `featurestore.FeatureExtractor`.
    extractor : FeatureExtractor, optional
        Used as it is; model, device, layers, windows, batch size and precision are then its own.
    progress : callable, optional
        Called with a `Progress` whenever something has changed, in the calling thread.

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
        If the store holds features of other settings, before any work.
    StoreAccessError
        If the features cannot fit on the disk, or the store cannot be written, before any work.
    BuildStoppedError
        If the store cannot be written any more on the way; it carries the report.
    """
    job = _Job(
        store=Path(store),
        kinds=kinds_of_level(feature_level),
        workers=workers,
        dtype=dtype,
        codec=codec,
        force=force,
        dry_run=dry_run,
        fail_fast=fail_fast,
        dataset=dataset,
    )
    if extractor is None:
        _check("batch_size", batch_size)
        hop_samples(window_samples(segment_duration, 1_000_000), overlap)
    _check("workers", workers)
    _check("limit", limit)
    FeatureSpec.for_arrays(layers=1, dim=1, dtype=dtype, codec=codec)  # refuses what no store can have
    tally = Tally(listener=progress)
    tally.facts.update(dry_run=dry_run, store=str(store), feature_level=feature_level)
    with Interrupts() as interrupts:
        try:
            tally.tell()
            tracks = discover(source, id_from=id_from, file_pattern=file_pattern, dataset=dataset)[:limit]
            tally.total = len(tracks)
            tally.enter("opening the model")
            there = _open_existing(job.store)
            if extractor is None:
                extractor = _extractor_class()(
                    model=model,
                    revision=revision or _recorded_revision(there, model),
                    device=device,
                    batch_size=batch_size,
                    mixed_precision=mixed_precision,
                    precision=precision,
                    oom_recovery=oom_recovery,
                    segment_duration=segment_duration,
                    overlap=overlap,
                    layers=layers,
                )
            job.run(tracks, there, extractor, interrupts, tally)
        except KeyboardInterrupt:
            return tally.report(interrupted=True)
    return tally.report()


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The settings of a build that are not the extractor's."""

    store: Path
    kinds: tuple[str, ...]
    workers: int
    dtype: str
    codec: str
    force: bool
    dry_run: bool
    fail_fast: bool
    dataset: str | None

    def run(
        self,
        tracks: Sequence[AudioFile],
        there: FeatureStore | None,
        extractor: FeatureExtractor,
        interrupts: Interrupts,
        tally: Tally,
    ) -> None:
        """Plan, and unless it is a dry run, extract and pack."""
        spec = extractor.spec(dtype=self.dtype, codec=self.codec)
        wanted = Wanted(spec=spec, kinds=self.kinds, force=self.force)
        tally.facts.update(
            model=spec.model, revision=spec.revision, device=str(extractor.device), fingerprint=spec.fingerprint
        )
        if there is not None:
            _check_settings(there, spec)
        tally.enter("checking")
        plans = plan_tracks(
            tracks,
            wanted=wanted,
            # Asked for with `in` first: the error of an unknown track looks for ids that are alike.
            existing=lambda track_id: (
                None if there is None or track_id not in there else _attributes(there.provenance, track_id)
            ),
            frames=extractor.model.frames,
            tell=lambda done: self._checked(tally, done),
        )
        self._count(plans, spec, tally)
        if self.dry_run:
            for plan in plans:
                if plan.error is not None:
                    tally.fail(plan.track, plan.error)
            return
        check_room(plans, spec, self.kinds, self.store)
        with interrupts.held():
            writer = StoreWriter(self.store, spec=spec)
            extraction = Extraction(
                writer=writer,
                extractor=extractor,
                wanted=wanted,
                existing=lambda track_id: _attributes(writer.existing, track_id),
                attributes={
                    "dataset": self.dataset,
                    "device": str(extractor.device),
                    "featurestore_version": __version__,
                },
                workers=self.workers,
                fail_fast=self.fail_fast,
                interrupts=interrupts,
                tally=tally,
            )
            try:
                try:
                    with naming_the_store(self.store), interrupts.let_in():
                        tally.enter("extracting")
                        extraction.run(plans)
                        tally.enter("packing")
                        extraction.pack(wait=_PACK_WAIT)
                finally:
                    writer.close()
            except StoreError as error:
                raise BuildStoppedError(
                    f"the build stopped: {error}. The {tally.processed} tracks that it has published are kept; "
                    "set this right and run the same command again",
                    report=tally.report(),
                ) from error
        tally.enter("done")

    def _checked(self, tally: Tally, done: int) -> None:
        tally.checked = done
        tally.tell()

    def _count(self, plans: Sequence[TrackPlan], spec: FeatureSpec, tally: Tally) -> None:
        tally.cached = sum(plan.cached for plan in plans)
        tally.audio_seconds_total = sum(plan.seconds for plan in plans)
        tally.facts.update(
            to_do=len(plans) - tally.cached,
            audio_hours_to_do=tally.audio_seconds_total / 3600,
            estimated_bytes=bytes_needed(plans, spec, self.kinds),
            free_bytes=free_bytes(self.store),
        )


def _check(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise SettingError(f"{name} must be at least 1, not {value}")


def _open_existing(path: Path) -> FeatureStore | None:
    """The store at a path, None if there is nothing or an empty folder."""
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return None
    return FeatureStore(path)


def _recorded_revision(there: FeatureStore | None, model: str | Path | Encoder) -> str | None:
    """The revision that a store was built with, if it was built with the model of this name."""
    if there is None or not isinstance(model, str | Path) or there.spec.model != str(model):
        return None
    return there.spec.revision


def _extractor_class() -> type[FeatureExtractor]:
    try:
        from featurestore.extract import FeatureExtractor
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"building a store needs {error.name}: pip install 'featurestore[extract]'"
        ) from error
    return FeatureExtractor


def _check_settings(there: FeatureStore, spec: FeatureSpec) -> None:
    if differences := there.spec.differences(spec):
        listed = "; ".join(f"{name} is {old!r}, not {new!r}" for name, (old, new) in differences.items())
        raise SpecMismatchError(
            f"the store {there.path} holds features of other settings ({listed}): give the options that it was "
            "built with, or another store",
            differences=differences,
        )


def _attributes(read: Callable[[str], Mapping[str, Any] | None], track_id: str) -> Mapping[str, Any] | None:
    """Attributes of a published track; None if there is none, or a damaged one, which is extracted again."""
    try:
        return read(track_id)
    except TrackNotFoundError:
        return None
    except CorruptTrackError as error:
        logger.warning("%s: %s", track_id, error)
        return None
