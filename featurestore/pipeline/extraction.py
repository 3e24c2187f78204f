"""The run itself: tracks are claimed, decoded, encoded in batches across tracks, and published."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import tee
from typing import TYPE_CHECKING, Any

from featurestore._version import __version__
from featurestore.encode.batch_size import Window
from featurestore.errors import (
    DeviceLostError,
    ExtractionError,
    FeatureStoreError,
    StoreError,
    TrackAccessError,
    TrackExistsError,
    TrackLockedError,
)
from featurestore.pipeline.claim import MOST_DEATHS, Attempts, TrackClaim, WriterThread, most_open
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.plan import Job, TrackPlan, is_published
from featurestore.pipeline.prefetch import AudioBuffer, TrackAudio, decode_ahead
from featurestore.pipeline.report import TrackDone
from featurestore.pipeline.tally import Tally
from featurestore.store import StoreWriter

if TYPE_CHECKING:
    from featurestore.encode import EncodedBatch, EncodedState, WindowEncoder

PACK_EVERY, PACK_SHARE = 256, 16
"""Published tracks after which they are packed; in a large table they must be this part of its rows, so that all
packs of a build take no longer than some of the last."""

MOST_PUBLISHING = 8
"""Tracks that may wait for a thread to publish them, before the next one is waited for."""

_LOCK_WAIT = 0.05
"""Seconds to wait for a lock that is held for another track before other tracks come first."""

_PAUSES = 0.05, 2.0
"""Seconds between two looks at tracks that others have, at first and at most."""

logger = logging.getLogger("featurestore")


class _LeftAlone(Exception):  # noqa: N818 - no error: leaves the block of a track without publishing anything
    """The track is left as it is: the store has it by now, or it is not to be finished."""


class Extraction:
    """Extracts tracks into an open store.

    A track is locked before it is decoded, so that nothing is decoded which another process has. Several tracks
    are open at a time, as batches go across their borders; results come back to each in order. What fails of one
    track fails that track alone.
    """

    def __init__(
        self,
        *,
        job: Job,
        writer: StoreWriter,
        extractor: WindowEncoder,
        interrupts: Interrupts,
        tally: Tally,
        attempts: Attempts,
    ) -> None:
        self._job = job
        self._writer = writer
        self._extractor = extractor
        self._attributes = {
            "dataset": job.dataset,
            "device": str(extractor.device),
            "featurestore_version": __version__,
        }
        self._interrupts = interrupts
        self._tally = tally
        self._attempts = attempts
        self._buffer = AudioBuffer(job.ahead_mb * 10**6)
        self._open: list[TrackClaim] = []
        self._most_open = most_open()
        self._later: list[TrackPlan] = []
        self._again = self._last_look = False
        self._unpacked = 0
        self._mark = time.monotonic()

    def run(self, plans: Sequence[TrackPlan]) -> None:
        """Extract tracks, all of which are to be done.

        Those that others have, or that a process has died with, are looked at again at the end, each alone, until
        they are done or free, or the time to wait for others is over.

        Raises
        ------
        StoreError, DeviceLostError
            If the store cannot be written, or the card has failed: going on would be in vain.
        """
        with closing(WriterThread()) as self._thread:
            self._attempt(plans)
            (pause, longest), self._again = _PAUSES, True
            deadline = time.monotonic() + self._job.wait_for_others
            if self._later:
                logger.info("%d tracks are at hand elsewhere, and are looked at again", len(self._later))
            while self._later and not self._stopped:
                self._last_look = time.monotonic() >= deadline
                plans, self._later = self._later, []
                for plan in plans:
                    self._attempt([plan])
                if self._later:
                    time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
                    pause = min(longest, 2 * pause)

    def pack(self, *, wait: float) -> None:
        """Bring what is published into the packed table; if another writer is at it, wait for so many seconds."""
        began = time.monotonic()
        with self._interrupts.deferred():
            self._settle(0)
            self._writer.pack(wait=wait, thorough=False)
        self._unpacked = 0
        self._mark += time.monotonic() - began  # is no time of encoding

    @property
    def _stopped(self) -> bool:
        return self._job.fail_fast and bool(self._tally.failures)

    def _attempt(self, plans: Iterable[TrackPlan]) -> None:
        """Attempt tracks in order, and count what becomes of them."""
        self._mark = time.monotonic()
        options: dict[str, Any] = {"raw": "raw" in self._job.kinds, "dtype": self._writer.spec.dtype}
        reason: BaseException = _LeftAlone()
        with self._interrupts.deferred():
            try:
                with (
                    closing(self._windows(plans)) as windows,
                    closing(self._extractor.encode_tracks(windows, stream=True, **options)) as results,
                ):
                    while True:
                        with self._interrupts.allowed():  # only meanwhile
                            found = next(results, None)
                        if found is None:
                            break
                        self._take(*found)
            except BaseException as error:
                reason = error
                raise
            finally:
                with ExitStack() as stack:  # each of them, whatever happens to the others
                    for claim in self._open:
                        stack.callback(
                            partial(self._settle, 0) if claim.closed else partial(self._release, claim, reason)
                        )

    def _claims(self, plans: Iterable[TrackPlan]) -> Iterator[TrackClaim]:
        """Claim tracks, each when its decoding is to begin. Interrupts are allowed."""
        for plan in plans:
            with self._interrupts.deferred():
                claim = None if self._stopped else self._claim(plan)
            if claim is not None:
                yield claim

    def _windows(self, plans: Iterable[TrackPlan]) -> Generator[Window[TrackClaim] | None, None, None]:
        """Yield the windows of all tracks that could be claimed. Interrupts are allowed."""
        ahead, claims = tee(self._claims(plans))
        with decode_ahead((claim.audio for claim in ahead), workers=self._job.workers) as audios:
            for audio, claim in zip(audios, claims, strict=True):
                while sum(other.begun and not other.closed for other in self._open) >= self._most_open:
                    yield None
                if self._stopped:
                    return
                if self._unpacked >= PACK_EVERY and self._unpacked >= self._writer.packed // PACK_SHARE:
                    self.pack(wait=0)
                claim.begun = True
                try:
                    for start, samples in self._extractor.windows(audio.blocks()):
                        claim.drawn += 1
                        yield Window(claim, start, samples)
                        if claim.closed or self._stopped:  # in vain by now
                            break
                    else:
                        claim.whole = True
                except FeatureStoreError as error:
                    with self._interrupts.deferred():
                        self._fail_open(claim, _named(claim.plan, error))
                with self._interrupts.deferred():
                    self._publish_if_complete(claim)

    def _claim(self, plan: TrackPlan) -> TrackClaim | None:
        """Lock a track, unless it is done or another process has it."""
        track_id = plan.track.track_id
        if self._attempts.is_done(plan):
            return None
        audio = TrackAudio(plan.track, self._extractor.model.sample_rate, self._buffer)
        context = self._writer.track(
            track_id, kinds=self._job.kinds, overwrite=True, attributes=self._attributes, wait=_LOCK_WAIT
        )
        try:
            claim = TrackClaim(plan, audio, context, self._thread)
        except TrackLockedError as error:
            logger.debug("%s: %s", track_id, error)
            self._put_off(plan)
            return None
        except FeatureStoreError as error:
            self._fail_alone(plan, error)
            return None
        self._open.append(claim)
        deaths = self._attempts.begin(plan)
        if deaths < MOST_DEATHS:
            # Asked again under the lock: another writer may have published it since the plan was made.
            published = is_published(self._writer, self._job, plan)
            if not published and (self._again or not deaths):
                return claim
            self._release(claim, _LeftAlone())
            if published:
                self._done(plan, "cached")
            else:
                self._later.append(plan)
        else:
            self._release(claim, _LeftAlone())
        return None

    def _take(self, claim: TrackClaim, result: EncodedBatch | EncodedState | Exception) -> None:
        """Write features of a track, and publish it after its last ones."""
        self._tally.encoding_seconds += (now := time.monotonic()) - self._mark
        self._mark = now
        self._tally.waited_for_audio = self._buffer.waited
        self._settle(MOST_PUBLISHING)
        if claim.closed:
            return
        try:
            if isinstance(result, Exception):
                raise _named(claim.plan, result)
            claim.append(result)
        except TrackLockedError:  # this process was taken for dead
            self._release(claim, _LeftAlone())
            self._put_off(claim.plan)
            return
        except StoreError:
            raise
        except FeatureStoreError as error:
            self._fail_open(claim, error)
            return
        self._publish_if_complete(claim)
        self._notify(claim.plan)
        self._mark = time.monotonic()
        self._tally.waited_for_store += self._mark - now
        self._tally.encoding_seconds += self._mark - now

    def _publish_if_complete(self, claim: TrackClaim) -> None:
        if not claim.closed and claim.complete:
            self._thread.publish(claim, self._attempts)

    def _settle(self, most: int) -> None:
        """Count the tracks that are published by now; wait until at most so many are on their way."""
        for claim, error in self._thread.published(most):
            self._open.remove(claim)
            plan, audio = claim.plan, claim.audio
            if error is None:
                took = time.monotonic() - claim.began
                logger.info("%s: %.1f s of audio in %.1f s", plan.track.track_id, audio.seconds, took)
                self._unpacked += 1
                self._done(plan, "processed", seconds=audio.seconds, warnings=audio.attributes["warnings"])
            elif isinstance(error, TrackLockedError | TrackExistsError):
                logger.info("%s: %s", plan.track.track_id, error)
                self._put_off(plan)
            elif isinstance(error, FeatureStoreError):
                self._fail_alone(plan, error)
            else:
                raise error

    def _fail_alone(self, plan: TrackPlan, error: FeatureStoreError) -> None:
        """Fail a track for an error of its own; one of the whole store is raised."""
        if isinstance(error, StoreError) and not isinstance(error, TrackAccessError):
            raise error
        self._fail(plan, error)

    def _release(self, claim: TrackClaim, reason: BaseException) -> None:
        """Let go of a track without publishing it; a card that is lost counts as the death of its process."""
        self._open.remove(claim)
        if not isinstance(reason, DeviceLostError):
            self._attempts.end(claim.plan)
        claim.give_up(reason)

    def _fail_open(self, claim: TrackClaim, error: FeatureStoreError) -> None:
        if not claim.closed:
            self._fail(claim.plan, error)  # before others may have it
            self._release(claim, error)

    def _put_off(self, plan: TrackPlan) -> None:
        """Look at a track that another writer has again later, or now for the last time."""
        if not self._last_look:
            self._later.append(plan)
        elif not self._attempts[plan] and is_published(self._writer, self._job, plan):
            self._done(plan, "cached")
        else:  # or a process of this build has it, and tells what it has done
            self._done(plan, "skipped")

    def _fail(self, plan: TrackPlan, error: BaseException) -> None:
        logger.info("%s failed: %s", plan.track.track_id, error)
        self._done(plan, "failed", error=error)

    def _done(self, plan: TrackPlan, outcome: str, **what: Any) -> None:
        """Count a track about which nothing is left to do."""
        if outcome != "skipped":
            self._attempts.done(plan)
        self._tally.add(TrackDone(track=plan.track, outcome=outcome, planned=plan.seconds, **what))
        self._notify(plan)

    def _notify(self, plan: TrackPlan) -> None:
        self._tally.notify(plan.track.track_id, seconds=sum(claim.seconds for claim in self._open))


def _named(plan: TrackPlan, error: Exception) -> FeatureStoreError:
    """Return the error of a track; an encoder knows windows, not files, so it gets the name of the file."""
    if isinstance(error, ExtractionError):
        return ExtractionError(f"{plan.track.path}: {error}")
    if isinstance(error, FeatureStoreError):
        return error
    logger.debug("encoding %s failed", plan.track.track_id, exc_info=error)
    named = ExtractionError(f"{plan.track.path}: encoding failed with {type(error).__name__}: {error}")
    named.__cause__ = error
    return named
