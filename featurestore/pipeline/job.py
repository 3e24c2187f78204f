"""A build once its settings are known: plan, extract, pack; and who extracts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featurestore._version import __version__
from featurestore.audio import AudioFile
from featurestore.errors import BuildStoppedError, SpecMismatchError, StoreError
from featurestore.pipeline.extraction import Extraction, published_attributes
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.plan import TrackPlan, Wanted, bytes_needed, check_room, free_bytes, plan_tracks
from featurestore.pipeline.report import Tally
from featurestore.spec import FeatureSpec
from featurestore.store import FeatureStore, StoreWriter
from featurestore.store.filesystem import naming_the_store

if TYPE_CHECKING:
    from featurestore.encode import WindowEncoder

_PACK_WAIT = 60.0  # seconds that the end of a build waits for another writer's packing

logger = logging.getLogger("featurestore")


class Workforce(Protocol):
    """Who extracts: an extractor of this process, or processes of several devices.

    Attributes
    ----------
    spec : FeatureSpec
        Of the features that it makes.
    device : str
        Where, for the report.
    """

    spec: FeatureSpec
    device: str

    def frames(self, n_samples: int) -> int:
        """Frames of a window, about."""
        ...

    def run(
        self, plans: Iterable[TrackPlan], *, writer: StoreWriter, interrupts: Interrupts, tally: Tally
    ) -> None:
        """Extract tracks, all of which are to be done, into the store of the writer.

        Raises
        ------
        StoreError
            If the store cannot be written: going on would be in vain.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of a build that are not the extractor's.

    Parameters
    ----------
    store : Path
    kinds : tuple of str
        What is stored of each track.
    workers : int
        Threads that decode ahead, for each extractor.
    dtype, codec : str
        As in `FeatureSpec`.
    force, dry_run, fail_fast : bool
    dataset : str or None
        As in `build`.
    """

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
        workforce: Workforce,
        interrupts: Interrupts,
        tally: Tally,
    ) -> None:
        """Plan, and unless it is a dry run, extract and pack."""
        spec = workforce.spec
        tally.facts.update(
            model=spec.model, revision=spec.revision, device=workforce.device, fingerprint=spec.fingerprint
        )
        if there is not None:
            _check_settings(there, spec)
        tally.enter("checking")
        plans = plan_tracks(
            tracks,
            wanted=Wanted(spec=spec, kinds=self.kinds, force=self.force),
            # Asked for with `in` first: the error of an unknown track looks for ids that are alike.
            existing=lambda track_id: (
                None
                if there is None or track_id not in there
                else published_attributes(there.provenance, track_id)
            ),
            frames=workforce.frames,
            tell=lambda done: self._checked(tally, done),
        )
        self._count(plans, spec, tally)
        if self.dry_run:
            self._usable(plans, tally)
            return
        check_room(plans, spec, self.kinds, self.store)
        with interrupts.held():
            writer = StoreWriter(self.store, spec=spec)
            try:
                try:
                    with naming_the_store(self.store), interrupts.let_in():
                        tally.enter("extracting")
                        usable = self._usable(plans, tally)
                        if not (self.fail_fast and tally.failures):
                            workforce.run(usable, writer=writer, interrupts=interrupts, tally=tally)
                        tally.enter("packing")
                        with interrupts.held():
                            writer.pack(wait=_PACK_WAIT)
                finally:
                    writer.close()
            except StoreError as error:
                raise BuildStoppedError(
                    f"the build stopped: {error}. The {tally.processed} tracks that it has published are kept; "
                    "set this right and run the same command again",
                    report=tally.report(),
                ) from error
        tally.enter("done")

    def extraction(
        self,
        extractor: WindowEncoder,
        writer: StoreWriter,
        interrupts: Interrupts,
        tally: Tally,
        settled: Callable[[TrackPlan], None] | None = None,
    ) -> Extraction:
        """What extracts the tracks of this job with an extractor."""
        return Extraction(
            writer=writer,
            extractor=extractor,
            wanted=Wanted(spec=writer.spec, kinds=self.kinds, force=self.force),
            existing=lambda track_id: published_attributes(writer.existing, track_id),
            attributes={
                "dataset": self.dataset,
                "device": str(extractor.device),
                "featurestore_version": __version__,
            },
            workers=self.workers,
            fail_fast=self.fail_fast,
            interrupts=interrupts,
            tally=tally,
            settled=settled,
        )

    def _usable(self, plans: Iterable[TrackPlan], tally: Tally) -> list[TrackPlan]:
        """Tracks to do; those whose file cannot be used are counted as failed, one at most if that ends it."""
        usable = []
        for plan in plans:
            if plan.error is None:
                usable += [] if plan.cached else [plan]
            elif self.dry_run or not (self.fail_fast and tally.failures):
                logger.info("%s failed: %s", plan.track.track_id, plan.error)
                tally.fail(plan.track, plan.error)
        tally.tell()
        return usable

    def _checked(self, tally: Tally, done: int) -> None:
        tally.checked = done
        tally.tell()

    def _count(self, plans: Sequence[TrackPlan], spec: FeatureSpec, tally: Tally) -> None:
        tally.cached = sum(plan.cached for plan in plans)
        tally.audio_seconds_total = sum(plan.seconds for plan in plans)
        tally.facts.update(
            to_do=len(plans) - tally.cached,
            audio_hours_to_do=tally.audio_seconds_total / 3600,
            guessed=sum(plan.guessed for plan in plans),
            estimated_bytes=bytes_needed(plans, spec, self.kinds),
            free_bytes=free_bytes(self.store),
        )


class Alone:
    """An extractor of this process, as a `Workforce`.

    Parameters
    ----------
    job : Job
    extractor : WindowEncoder
    """

    def __init__(self, job: Job, extractor: WindowEncoder) -> None:
        self._job, self._extractor = job, extractor
        self.spec = extractor.spec(dtype=job.dtype, codec=job.codec)
        self.device = str(extractor.device)

    def frames(self, n_samples: int) -> int:
        """Frames of a window."""
        return self._extractor.model.frames(n_samples)

    def run(
        self, plans: Iterable[TrackPlan], *, writer: StoreWriter, interrupts: Interrupts, tally: Tally
    ) -> None:
        """Extract tracks."""
        self._job.extraction(self._extractor, writer, interrupts, tally).run(plans)


def _check_settings(there: FeatureStore, spec: FeatureSpec) -> None:
    if differences := there.spec.differences(spec):
        listed = "; ".join(f"`{name}` is {old!r}, not {new!r}" for name, (old, new) in differences.items())
        raise SpecMismatchError(
            f"the store {there.path} holds features of other settings ({listed}): give the options that it was "
            "built with, or another store",
            differences=differences,
        )
