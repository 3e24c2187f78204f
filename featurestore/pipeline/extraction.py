"""The run itself: audio from the workers, through the model, into the store, one track after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from featurestore.audio import AudioFile
from featurestore.errors import (
    ExtractionError,
    FeatureStoreError,
    StoreError,
    TrackLockedError,
)
from featurestore.pipeline.decoding import TrackAudio, decode_ahead
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.plan import TrackPlan, Wanted
from featurestore.pipeline.report import Tally
from featurestore.store import StoreWriter

if TYPE_CHECKING:
    from featurestore.extract import EncodedBatch, FeatureExtractor

PACK_EVERY = 256
"""Published tracks after which they are packed: one at a time would rewrite the tail of the table each time."""

LOCK_PATIENCE = 600.0
"""Seconds that a track is waited for whose lock is held for another track."""

_LOCK_WAIT = 0.05
"""Seconds to wait for a lock that is held for another track before other tracks come first."""

logger = logging.getLogger("featurestore")


class Outcome(Enum):
    """What became of one attempt at a track."""

    PROCESSED = auto()
    THERE = auto()  # published before, or by another writer in the meantime
    FAILED = auto()
    LOCKED = auto()  # another writer has this track
    LOCK_SHARED = auto()  # another writer has a track that shares the lock


class _AlreadyThere(Exception):  # noqa: N818 - no error: leaves the block without publishing anything
    """Another writer has published the track since the plan was made."""


class Extraction:
    """Extracts tracks into an open store.

    Parameters
    ----------
    writer : StoreWriter
    extractor : FeatureExtractor
    wanted : Wanted
        What counts as there.
    existing : callable
        Attributes of the published track of an id, or None.
    attributes : mapping
        What is written down with every track.
    workers : int
        Threads that decode ahead.
    fail_fast : bool
        Stop at the first failure.
    interrupts : Interrupts
    tally : Tally
    """

    def __init__(
        self,
        *,
        writer: StoreWriter,
        extractor: FeatureExtractor,
        wanted: Wanted,
        existing: Callable[[str], Mapping[str, Any] | None],
        attributes: Mapping[str, Any],
        workers: int,
        fail_fast: bool,
        interrupts: Interrupts,
        tally: Tally,
    ) -> None:
        self._writer = writer
        self._extractor = extractor
        self._wanted = wanted
        self._existing = existing
        self._attributes = dict(attributes)
        self._workers = workers
        self._fail_fast = fail_fast
        self._interrupts = interrupts
        self._tally = tally
        self._unpacked = 0

    def run(self, plans: Iterable[TrackPlan]) -> None:
        """Extract the tracks that are to be done; those that others have at hand are looked at again at the end.

        Raises
        ------
        StoreError
            If the store cannot be written: going on would be in vain.
        """
        locked = self._attempt_all([plan for plan in plans if not plan.cached])
        patience = time.monotonic() + LOCK_PATIENCE
        pause = 0.0
        while locked and not self._stopped:
            time.sleep(pause)
            pause = min(5.0, pause + 0.5)
            in_vain = time.monotonic() > patience
            # Another writer that held a track has finished it by now, or is still at it, or has died.
            locked = self._attempt_all(locked, again=True, in_vain=in_vain)

    def pack(self, *, wait: float) -> None:
        """Bring what is published into the packed table; if another writer is at it, wait for so many seconds."""
        with self._interrupts.held():
            self._writer.pack(wait=wait)
        self._unpacked = 0

    @property
    def _stopped(self) -> bool:
        return self._fail_fast and bool(self._tally.failures)

    def _attempt_all(
        self, plans: list[TrackPlan], *, again: bool = False, in_vain: bool = False
    ) -> list[TrackPlan]:
        """Attempt tracks in order and count them; return those to look at again."""
        tally = self._tally
        for plan in plans:
            if plan.error is not None and not self._stopped:
                self._fail(plan, plan.error)
        usable = [plan for plan in plans if plan.error is None]
        later: list[TrackPlan] = []
        if self._stopped or not usable:
            return later
        rate = self._extractor.model.sample_rate
        with decode_ahead((p.track for p in usable), sample_rate=rate, workers=self._workers) as audios:
            for plan, audio in zip(usable, audios, strict=True):
                outcome = self._attempt(plan, audio)
                if outcome is Outcome.LOCKED and again:
                    tally.skipped += 1
                elif outcome is Outcome.LOCK_SHARED and in_vain:
                    self._fail(plan, _too_long(plan.track))
                elif outcome in (Outcome.LOCKED, Outcome.LOCK_SHARED):
                    later.append(plan)
                elif outcome is Outcome.THERE and again:
                    tally.skipped += 1
                elif outcome is Outcome.THERE:
                    tally.cached += 1
                if outcome is Outcome.FAILED or outcome is Outcome.THERE:
                    tally.audio_seconds_total -= plan.seconds  # will never be encoded by this run
                tally.tell(plan.track.track_id)
                if self._stopped:
                    break
                if self._unpacked >= PACK_EVERY:
                    self.pack(wait=0)
        return later

    def _attempt(self, plan: TrackPlan, audio: TrackAudio) -> Outcome:
        """Extract one track, unless it is there or another writer has it."""
        track = plan.track
        try:
            with self._interrupts.held():
                self._extract(track, audio)
        except _AlreadyThere:
            return Outcome.THERE
        except TrackLockedError as error:
            logger.info("%s: %s", track.track_id, error)
            return Outcome.LOCKED if error.same_track else Outcome.LOCK_SHARED
        except StoreError:
            raise
        except FeatureStoreError as error:
            self._fail(plan, error)
            return Outcome.FAILED
        return Outcome.PROCESSED

    def _extract(self, track: AudioFile, audio: TrackAudio) -> None:
        tally, began = self._tally, time.monotonic()
        with self._writer.track(
            track.track_id,
            kinds=self._wanted.kinds,
            overwrite=True,
            attributes=self._attributes,
            wait=_LOCK_WAIT,
        ) as t:
            # Asked again under the lock: another writer may have published it since the plan was made.
            if self._is_there(track):
                raise _AlreadyThere
            for batch in self._encoded(audio):
                t.append(raw=batch.raw, segments=batch.segments, starts=batch.starts)
                tally.tell(track.track_id, seconds=audio.seconds, running=time.monotonic() - began)
            t.attributes.update(audio.attributes)
        tally.processed += 1
        tally.audio_seconds += audio.seconds
        tally.encoding_seconds += time.monotonic() - began
        self._unpacked += 1
        logger.info("%s: %.1f s of audio in %.1f s", track.track_id, audio.seconds, time.monotonic() - began)

    def _encoded(self, audio: TrackAudio) -> Iterator[EncodedBatch]:
        """The track's features; only meanwhile interrupts are let in."""
        batches = self._extractor.encode(audio.blocks(), raw="raw" in self._wanted.kinds)
        while True:
            with self._interrupts.let_in():
                try:
                    batch = next(batches, None)
                except FeatureStoreError:
                    raise
                except Exception as error:
                    logger.debug("encoding %s failed", audio.track.track_id, exc_info=True)
                    raise ExtractionError(
                        f"{audio.track.path}: encoding failed with {type(error).__name__}: {error}"
                    ) from error
            if batch is None:
                return
            yield batch

    def _is_there(self, track: AudioFile) -> bool:
        try:
            return self._wanted.is_there(self._existing(track.track_id), track)
        except OSError:
            return False  # decoding says better what is wrong with the file

    def _fail(self, plan: TrackPlan, error: BaseException) -> None:
        logger.info("%s failed: %s", plan.track.track_id, error)
        self._tally.fail(plan.track, error)


def _too_long(track: AudioFile) -> TrackLockedError:
    return TrackLockedError(
        f"track {track.track_id!r} waited {LOCK_PATIENCE:.0f} s for a lock that another writer holds for another "
        "track: run again later"
    )
