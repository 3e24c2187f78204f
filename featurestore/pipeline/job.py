"""A build once its settings are known: plan, extract, pack; and who extracts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from featurestore.amounts import bytes_in_words, hours_in_words
from featurestore.audio import AudioFile
from featurestore.errors import (
    BuildStoppedError,
    DeviceLostError,
    SpecMismatchError,
    StoreAccessError,
    StoreError,
    TrackLockedError,
)
from featurestore.pipeline.claim import Attempts
from featurestore.pipeline.extraction import Extraction
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.orphans import TAKEN, find_moved, find_orphans, rename_moved
from featurestore.pipeline.plan import (
    Job,
    TrackPlan,
    bytes_needed,
    check_free_space,
    plan_track,
    plan_windows,
    published_attributes,
)
from featurestore.pipeline.prefetch import map_in_threads
from featurestore.pipeline.report import TrackDone
from featurestore.pipeline.tally import Tally
from featurestore.spec import FeatureSpec
from featurestore.store import StoreReader, StoreWriter
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.reading import free_bytes
from featurestore.windows import hop_samples, window_count, window_samples

if TYPE_CHECKING:
    from featurestore.encode import WindowEncoder

SEAL_ABOVE = 10_000
"""Tracks in folders from which on a build seals them, if it was not told whether it should."""
_PACK_WAIT = 60.0  # seconds that the end of a build waits for another writer's packing

logger = logging.getLogger("featurestore")


class Executor:
    """Who makes features of a spec: an encoder of this process, or several processes; this one only plans."""

    device = "none"  # where it computes, for the report

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec

    def planned(self, n_samples: int) -> tuple[int, int]:
        """Return the windows of a track of so many samples, and the frames of all of them, or one more of each."""
        spec = self.spec
        rate, frame_rate, seconds = spec.sample_rate, spec.frame_rate, spec.segment_duration
        window, windows = n_samples, 1
        if rate is not None and isinstance(seconds, int | float):
            window = window_samples(seconds, rate)
            windows = window_count(n_samples, window, hop_samples(window, spec.overlap or 0.0))
        frames = 1 if rate is None or frame_rate is None else round(min(window, n_samples) * frame_rate / rate)
        return windows, windows * max(1, frames)

    def run(
        self, plans: Sequence[TrackPlan], *, writer: StoreWriter, interrupts: Interrupts, tally: Tally
    ) -> None:
        """Extract tracks, at least one and all of which are to be done, into the store of the writer.

        Raises
        ------
        StoreError
            If the store cannot be written: going on would be in vain.
        """
        raise NotImplementedError


class LocalExecutor(Executor):
    """Extracts in this process.

    `attempts` tell which tracks the processes of this build have in flight; by default there is only this one.
    """

    def __init__(self, job: Job, extractor: WindowEncoder, attempts: Attempts | None = None) -> None:
        self._job, self._extractor, self._attempts = job, extractor, attempts
        super().__init__(extractor.spec(dtype=job.dtype, codec=job.codec))
        self.device = str(extractor.device)

    def planned(self, n_samples: int) -> tuple[int, int]:
        """Return the windows of a track of so many samples, and the frames of all of them."""
        return self._extractor.planned(n_samples)

    def run(
        self, plans: Sequence[TrackPlan], *, writer: StoreWriter, interrupts: Interrupts, tally: Tally
    ) -> None:
        """Extract tracks."""
        extraction = Extraction(
            job=self._job,
            writer=writer,
            extractor=self._extractor,
            interrupts=interrupts,
            tally=tally,
            attempts=self._attempts or Attempts(bytearray(1 + max(plan.number for plan in plans))),
        )
        extraction.run(plans)


def check_tracks(
    job: Job, tracks: Sequence[AudioFile], there: StoreReader | None, spec: FeatureSpec, tally: Tally
) -> list[TrackPlan]:
    """Compare a source with a store, without a model: a plan for each track, in their order, without windows.

    Tracks whose files were moved are renamed, unless it is a dry run; those whose files are gone become a fact of
    the tally.
    """
    tally.enter("checking")
    orphans = {} if there is None or job.root is None else find_orphans(there, tracks, job.root)
    moved = {} if there is None else find_moved(there, tracks, orphans)
    if moved and there is not None and not job.dry_run:
        with StoreWriter(job.store, spec=spec) as renaming:
            rename_moved(there, renaming, tracks, moved, orphans)
    tally.facts["moved"] = len(moved)
    tally.facts["orphans"] = tuple(track_id for track_id in orphans if track_id not in moved.values())
    names = moved if job.dry_run else {}

    def look_at(number: int) -> TrackPlan:
        track, published = tracks[number], None
        name = names.get(track.track_id, track.track_id)
        # Asked for with `in` first: the error of an unknown track looks for ids that are alike.
        if there is not None and name in there:
            published = published_attributes(there.provenance, name)
        return plan_track(number, track, published, job, spec)

    def checked(done: int) -> None:
        tally.checked = done
        tally.notify()

    return map_in_threads(look_at, range(len(tracks)), checked)


def run_job(
    job: Job,
    tracks: Sequence[AudioFile],
    there: StoreReader | None,
    executor: Executor,
    interrupts: Interrupts,
    tally: Tally,
    *,
    writer: StoreWriter | None = None,
    checked: Sequence[TrackPlan] | None = None,
) -> None:
    """Plan, and unless it is a dry run, extract and pack: by `writer`, or else by one that is opened for it.

    What is `checked` already is not looked at again.

    Raises
    ------
    SpecMismatchError
        If the store holds features of other settings, or fewer kinds.
    StoreAccessError
        If the features cannot fit on the disk, or the store cannot be written.
    BuildStoppedError
        If the store cannot be written any more on the way, or the card fails.
    """
    spec = executor.spec
    tally.facts.update(
        model=spec.model, revision=spec.revision, device=executor.device, fingerprint=spec.fingerprint
    )
    if there is not None:
        check_settings(there.path, there.spec, spec)
    if job.extends is not None:
        check_settings(tally.facts["store"], job.extends, replace(spec, layers=job.extends.layers))
    checked = check_tracks(job, tracks, there, spec, tally) if checked is None else checked
    plans = plan_windows(checked, spec.sample_rate, executor.planned)
    _count(job, plans, spec, tally)
    if job.refused and not job.dry_run:
        _refuse_upgrade(job, plans, tally)
    if job.dry_run:
        _usable(job, plans, tally)
        return
    check_free_space(plans, spec, job.kinds, job.store)
    with interrupts.deferred():
        opened = writer or StoreWriter(job.store, spec=spec)
        try:
            with nullcontext() if writer else opened, translate_os_errors(job.store), interrupts.allowed():
                tally.enter("extracting")
                usable = _usable(job, plans, tally)
                if usable and not (job.fail_fast and tally.failures):
                    executor.run(usable, writer=opened, interrupts=interrupts, tally=tally)
                for track_id in tally.facts["orphans"] if job.prune else ():
                    with suppress(*TAKEN):
                        opened.remove(track_id)
                    tally.facts["pruned"] = tally.facts.get("pruned", 0) + 1
                if job.packs:
                    tally.enter("packing")
                    with interrupts.deferred():
                        if not opened.pack(wait=_PACK_WAIT, thorough=False):
                            logger.warning("queries are slower than they may be: %s", opened.session.packer())
                    _seal(job, opened)
        except (StoreError, DeviceLostError) as error:
            raise BuildStoppedError(
                f"the build stopped: {error}. The {tally.processed} tracks that it has published are kept; "
                "set this right and run the same command again",
                report=tally.report(),
            ) from error
    tally.enter("done")


def _seal(job: Job, writer: StoreWriter) -> None:
    """Seal tracks if that is wanted, or if there are many."""
    many = job.seal is None and job.codec == "none"
    if not (job.seal or many):
        return
    try:
        writer.pack(seal=True, above=SEAL_ABOVE if many else 0, wait=_PACK_WAIT, thorough=False)
    except (StoreAccessError, TrackLockedError) as error:
        if not many:
            raise
        logger.warning("the tracks stay in their folders: %s", error)


def _usable(job: Job, plans: Iterable[TrackPlan], tally: Tally) -> list[TrackPlan]:
    """Return the tracks to do; files that cannot be used count as failed, one at most if that ends it."""
    usable = []
    for plan in plans:
        if plan.to_do:
            usable.append(plan)
        elif plan.error is not None and (job.dry_run or not (job.fail_fast and tally.failures)):
            logger.info("%s failed: %s", plan.track.track_id, plan.error)
            tally.add(TrackDone(track=plan.track, outcome="failed", error=plan.error))
    tally.notify()
    return usable


def _count(job: Job, plans: Sequence[TrackPlan], spec: FeatureSpec, tally: Tally) -> None:
    tally.cached = sum(plan.cached for plan in plans)
    tally.waiting.difference_update(plan.track.track_id for plan in plans if plan.cached)
    tally.audio_seconds_total = sum(plan.seconds for plan in plans)
    tally.facts.update(
        to_do=len(plans) - tally.cached,
        audio_hours_to_do=tally.audio_seconds_total / 3600,
        guessed=sum(plan.guessed for plan in plans),
        estimated_bytes=bytes_needed(plans, spec, job.kinds),
        free_bytes=free_bytes(job.store.absolute()),
    )


def _refuse_upgrade(job: Job, plans: Sequence[TrackPlan], tally: Tally) -> None:
    to_do = sum(plan.to_do for plan in plans)
    if not to_do and job.extends is None:
        return
    has = " and ".join(f"`{name}={old!r}`" for name, (old, _) in job.refused.items())
    wanted = " and ".join(f"`{name}={new!r}`" for name, (_, new) in job.refused.items())
    size = bytes_in_words(tally.facts["estimated_bytes"])
    needs = f"it grows by about {size}" if job.extends is None else f"about {size} are needed beside it meanwhile"
    raise SpecMismatchError(
        f"the store {tally.facts['store']} has {has}: with {wanted} {to_do} tracks "
        f"({hours_in_words(tally.facts['audio_hours_to_do'])} of audio) are extracted, and {needs}. Give "
        f"`upgrade=True` if that is wanted, leave out {' and '.join(f'`{name}`' for name in job.refused)}, or "
        "name another store",
        differences=job.refused,
    )


def check_settings(store: object, stored: FeatureSpec, spec: FeatureSpec) -> None:
    """Raise SpecMismatchError unless features of a spec may be in a store of another one."""
    if differences := stored.differences(spec):
        listed = "; ".join(f"`{name}` is {old!r}, not {new!r}" for name, (old, new) in differences.items())
        raise SpecMismatchError(
            f"the store {store} holds features of other settings ({listed}): give the options that it was built "
            "with, or another store",
            differences=differences,
        )
