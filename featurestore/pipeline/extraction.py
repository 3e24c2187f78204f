"""The run itself: audio from the workers, through the model in batches across tracks, into the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import tee
from typing import TYPE_CHECKING, Any

from featurestore.encode.batch_size import Window
from featurestore.errors import (
    AudioError,
    CorruptTrackError,
    ExtractionError,
    FeatureStoreError,
    StoreError,
    TrackLockedError,
    TrackNotFoundError,
)
from featurestore.pipeline.claim import OpenTrack, most_open
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.plan import TrackPlan, Wanted
from featurestore.pipeline.prefetch import TrackAudio, decode_ahead
from featurestore.pipeline.report import Tally
from featurestore.store import StoreWriter

if TYPE_CHECKING:
    from featurestore.encode import EncodedBatch, WindowEncoder

PACK_EVERY = 256
"""Published tracks after which they are packed: one at a time would rewrite the tail of the table each time."""

LOCK_PATIENCE = 600.0
"""Seconds that a track is waited for whose lock is held for another track."""

_LOCK_WAIT = 0.05
"""Seconds to wait for a lock that is held for another track before other tracks come first."""

logger = logging.getLogger("featurestore")


class _LeftAlone(Exception):  # noqa: N818 - no error: leaves the block of a track without publishing anything
    """Another writer has published the track since the plan was made, or it is not to be finished."""


@dataclass(kw_only=True)
class _Round:
    """One look at tracks.

    Attributes
    ----------
    again : bool
        They were looked at before, and others had them at hand.
    in_vain : bool
        They have been waited for long enough.
    later : list of TrackPlan
        Those that others have at hand.
    """

    again: bool = False
    in_vain: bool = False
    later: list[TrackPlan] = field(default_factory=list)


class Extraction:
    """Extracts tracks into an open store.

    Several tracks are open at a time, as batches go across their borders; results come back to each in order. What
    fails of one track, fails that track alone.

    Parameters
    ----------
    writer : StoreWriter
    extractor : WindowEncoder
    wanted : Wanted
        What counts as there.
    existing : callable
        Attributes of the published track of an id, or None.
    attributes : mapping
        What is written down with every track.
    workers : int
        Threads that decode ahead.
    fail_fast : bool
        Begin no track after the first failure.
    interrupts : Interrupts
    tally : Tally
    settled : callable, optional
        Called with the plan of each track about which nothing is left to do.
    """

    def __init__(
        self,
        *,
        writer: StoreWriter,
        extractor: WindowEncoder,
        wanted: Wanted,
        existing: Callable[[str], Mapping[str, Any] | None],
        attributes: Mapping[str, Any],
        workers: int,
        fail_fast: bool,
        interrupts: Interrupts,
        tally: Tally,
        settled: Callable[[TrackPlan], None] | None = None,
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
        self._settled = settled or _nothing
        self._open: list[OpenTrack] = []
        self._most_open = most_open()
        self._unpacked = 0
        self._mark = time.monotonic()

    def run(self, plans: Iterable[TrackPlan]) -> None:
        """Extract tracks; those that others have at hand are looked at again at the end.

        Parameters
        ----------
        plans : iterable of TrackPlan
            All of which are to be done; drawn as they are needed.

        Raises
        ------
        StoreError
            If the store cannot be written: going on would be in vain.
        """
        this = _Round()
        self._attempt(plans, this)
        patience = time.monotonic() + LOCK_PATIENCE
        pause = 0.0
        while this.later and not self._stopped:
            time.sleep(pause)
            pause = min(5.0, pause + 0.5)
            plans = this.later
            # Another writer that held a track has finished it by now, or is still at it, or has died.
            this = _Round(again=True, in_vain=time.monotonic() > patience)
            self._attempt(plans, this)

    def pack(self, *, wait: float) -> None:
        """Bring what is published into the packed table; if another writer is at it, wait for so many seconds."""
        began = time.monotonic()
        with self._interrupts.held():
            self._writer.pack(wait=wait)
        self._unpacked = 0
        self._mark += time.monotonic() - began  # is no time of encoding

    @property
    def _stopped(self) -> bool:
        return self._fail_fast and bool(self._tally.failures)

    def _attempt(self, plans: Iterable[TrackPlan], this: _Round) -> None:
        """Attempt tracks in order, and count what becomes of them."""
        if self._stopped:
            return
        self._mark = time.monotonic()
        raw = "raw" in self._wanted.kinds
        reason: BaseException = _LeftAlone()
        with self._interrupts.held():
            try:
                with (
                    closing(self._windows(plans, this)) as windows,
                    closing(self._extractor.encode_tracks(windows, raw=raw)) as results,
                ):
                    while (found := self._next(results)) is not None:
                        self._take(*found)
            except BaseException as error:
                reason = error
                raise
            finally:
                with ExitStack() as stack:  # each of them, whatever happens to the others
                    for track in self._open:
                        stack.callback(self._close, track, reason)

    def _next(
        self, results: Iterator[tuple[OpenTrack, EncodedBatch | Exception]]
    ) -> tuple[OpenTrack, EncodedBatch | Exception] | None:
        """The next results; only meanwhile interrupts are let in."""
        with self._interrupts.let_in():
            return next(results, None)

    def _windows(
        self, plans: Iterable[TrackPlan], this: _Round
    ) -> Generator[Window[OpenTrack] | None, None, None]:
        """The windows of all tracks, each of which is opened when it is its turn. Interrupts are let in."""
        rate = self._extractor.model.sample_rate
        mine, ahead = tee(plans)
        with decode_ahead((p.track for p in ahead), sample_rate=rate, workers=self._workers) as audios:
            for plan, audio in zip(mine, audios, strict=True):
                while len(self._open) >= self._most_open:
                    yield None
                with self._interrupts.held():
                    if self._unpacked >= PACK_EVERY:
                        self.pack(wait=0)
                    track = None if self._stopped else self._begin(plan, audio, this)
                if track is not None:
                    try:
                        for start, samples in self._extractor.windows(audio.blocks()):
                            track.drawn += 1
                            yield Window(track, start, samples)
                            if track.closed or self._stopped:  # in vain by now
                                break
                        else:
                            track.whole = True
                    except FeatureStoreError as error:
                        with self._interrupts.held():
                            self._fail_open(track, error)
                    with self._interrupts.held():
                        self._publish_if_complete(track)
                if self._stopped:
                    return

    def _begin(self, plan: TrackPlan, audio: TrackAudio, this: _Round) -> OpenTrack | None:
        """Open a track, unless it is there or another writer has it."""
        tally, track_id = self._tally, plan.track.track_id
        context = self._writer.track(
            track_id, kinds=self._wanted.kinds, overwrite=True, attributes=self._attributes, wait=_LOCK_WAIT
        )
        try:
            track = OpenTrack(plan, audio, context)
        except TrackLockedError as error:
            logger.info("%s: %s", track_id, error)
            if not error.same_track and this.in_vain:
                self._fail(plan, _too_long(track_id))
            elif error.same_track and this.again:
                tally.skipped += 1
                self._settled(plan)
            else:
                this.later.append(plan)
            tally.tell(track_id)
            return None
        except StoreError:
            raise
        except FeatureStoreError as error:
            self._fail(plan, error)
            return None
        self._open.append(track)
        # Asked again under the lock: another writer may have published it since the plan was made.
        if not self._is_there(plan):
            return track
        self._close(track, _LeftAlone())
        tally.audio_seconds_total -= plan.seconds  # will never be encoded by this run
        if this.again:
            tally.skipped += 1
        else:
            tally.cached += 1
        self._settled(plan)
        tally.tell(track_id)
        return None

    def _take(self, track: OpenTrack, result: EncodedBatch | Exception) -> None:
        """Write features of a track, and publish it after its last ones."""
        self._tally.encoding_seconds += (now := time.monotonic()) - self._mark
        self._mark = now
        if track.closed:
            return
        if isinstance(result, Exception):
            self._fail_open(track, self._named(track, result))
            return
        try:
            track.append(result)
        except StoreError:
            raise
        except FeatureStoreError as error:
            self._fail_open(track, error)
            return
        if not self._publish_if_complete(track):
            self._tell(track)

    def _named(self, track: OpenTrack, error: Exception) -> FeatureStoreError:
        if isinstance(error, FeatureStoreError):
            return error
        path = track.plan.track.path
        logger.debug("encoding %s failed", track.plan.track.track_id, exc_info=error)
        named = ExtractionError(f"{path}: encoding failed with {type(error).__name__}: {error}")
        named.__cause__ = error
        return named

    def _publish_if_complete(self, track: OpenTrack) -> bool:
        if track.closed or not track.complete:
            return False
        tally, track_id, seconds = self._tally, track.plan.track.track_id, track.audio.seconds
        self._open.remove(track)
        try:
            track.publish()
        except StoreError:
            raise
        except FeatureStoreError as error:
            self._fail(track.plan, error)
            return True
        tally.processed += 1
        tally.audio_seconds += seconds
        tally.warn(track.plan.track, track.audio.attributes["warnings"])
        self._unpacked += 1
        logger.info("%s: %.1f s of audio in %.1f s", track_id, seconds, time.monotonic() - track.began)
        self._settled(track.plan)
        self._tell(track)
        return True

    def _tell(self, track: OpenTrack) -> None:
        self._tally.tell(track.plan.track.track_id, seconds=sum(other.seconds for other in self._open))

    def _close(self, track: OpenTrack, reason: BaseException) -> None:
        self._open.remove(track)
        track.give_up(reason)

    def _fail_open(self, track: OpenTrack, error: FeatureStoreError) -> None:
        if not track.closed:
            self._close(track, error)
            self._fail(track.plan, error)

    def _is_there(self, plan: TrackPlan) -> bool:
        try:
            return self._wanted.is_there(self._existing(plan.track.track_id), plan.track)
        except AudioError:
            return False  # decoding says what is wrong with the file

    def _fail(self, plan: TrackPlan, error: BaseException) -> None:
        logger.info("%s failed: %s", plan.track.track_id, error)
        self._tally.audio_seconds_total -= plan.seconds
        self._tally.fail(plan.track, error)
        self._settled(plan)
        self._tally.tell(plan.track.track_id)


def _nothing(_: TrackPlan) -> None:
    """Nobody wants to know."""


def published_attributes(
    read: Callable[[str], Mapping[str, Any] | None], track_id: str
) -> Mapping[str, Any] | None:
    """Attributes of a published track; None if there is none, or a damaged one, which is extracted again."""
    try:
        return read(track_id)
    except TrackNotFoundError:
        return None
    except CorruptTrackError as error:
        logger.warning("%s: %s", track_id, error)
        return None


def _too_long(track_id: str) -> TrackLockedError:
    return TrackLockedError(
        f"track {track_id!r} waited {LOCK_PATIENCE:.0f} s for a lock that another writer holds for another "
        "track: run again later"
    )
