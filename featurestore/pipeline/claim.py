"""A track at hand: it is locked before its audio is decoded, and staged while its windows go through the model."""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, cast

from featurestore.pipeline.plan import TrackPlan
from featurestore.pipeline.prefetch import TrackAudio
from featurestore.store.track_writer import TrackWriter

if TYPE_CHECKING:
    from featurestore.encode import EncodedBatch, EncodedState

MOST_DEATHS = 2
"""Processes that may die with a track in flight before nobody takes it again: it may be what they die of."""

_DONE = 255


class Attempts:
    """Counts how many processes have a track in flight, or have died with it, and which tracks are done.

    The processes of one build share the memory. A count is changed under the lock of its track, so that nobody but
    the holder of the lock does it; what the holder finds there is the number of the dead.

    `counts` has one byte for each track of the plan, 0 at first.
    """

    def __init__(self, counts: MutableSequence[int]) -> None:
        self._counts = counts

    def __getitem__(self, plan: TrackPlan) -> int:
        return self._counts[plan.number]

    def is_done(self, plan: TrackPlan) -> bool:
        """Whether a process of this build has done all that there is to do about a track."""
        return self._counts[plan.number] == _DONE

    def begin(self, plan: TrackPlan) -> int:
        """Count a track as in flight, and return how many processes have died with it; many if it is done."""
        deaths = self._counts[plan.number]
        if deaths != _DONE:
            self._counts[plan.number] = deaths + 1
        return deaths

    def end(self, plan: TrackPlan) -> None:
        """Count a track as no longer in flight: whatever became of it, this process has survived it."""
        if not self.is_done(plan):
            self._counts[plan.number] -= 1

    def done(self, plan: TrackPlan) -> None:
        """Tell the other processes that nothing is left to do about a track."""
        self._counts[plan.number] = _DONE


class WriterThread:
    """A thread that writes frames and publishes tracks, in order, while other windows are computed."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="featurestore-writer")
        self._last: Future[None] | None = None
        self._publishing: deque[tuple[TrackClaim, Future[None]]] = deque()

    def write(self, frames: Callable[[], None]) -> Future[None]:
        """Have frames written; those of the call before are waited for, as they take much memory."""
        if self._last is not None:
            wait([self._last])
        self._last = self._thread.submit(frames)
        return self._last

    def publish(self, claim: TrackClaim, attempts: Attempts) -> None:
        """Have a track published, behind all that was asked for before."""
        claim.closed = True
        self._publishing.append((claim, self._thread.submit(claim.publish, attempts)))

    def published(self, most: int) -> Iterator[tuple[TrackClaim, BaseException | None]]:
        """Yield tracks that are published by now, or why not; wait until at most so many are under way."""
        while self._publishing and (len(self._publishing) > most or self._publishing[0][1].done()):
            claim, future = self._publishing.popleft()
            yield claim, future.exception()

    def close(self) -> None:
        """End the thread when it has written all."""
        self._thread.shutdown()


class TrackClaim:
    """A track whose lock is held by this process.

    Nothing of its `audio` has been decoded yet. The `context` takes the lock when it is entered, here, which may
    raise TrackLockedError or StoreError, and publishes the track when it is left without an error.

    Attributes
    ----------
    begun : bool
        Whether its windows are being drawn, or have been; until then its audio is decoded ahead.
    drawn : int
        The number of windows that are on their way or written.
    whole : bool
        Whether no more windows will be drawn.
    closed : bool
        Whether nothing more is taken: the track is given up or published, perhaps by a thread that is at it.
    seconds : float
        The length of the audio that is written.
    """

    def __init__(
        self,
        plan: TrackPlan,
        audio: TrackAudio,
        context: AbstractContextManager[TrackWriter],
        thread: WriterThread,
    ) -> None:
        self.plan, self.audio = plan, audio
        self.drawn = self._written = 0
        self.begun = self.whole = self.closed = False
        self.seconds = 0.0
        self.began = time.monotonic()
        self._thread, self._writes = thread, list[Future[None]]()
        self._context = context
        self._writing = context.__enter__()

    @property
    def complete(self) -> bool:
        """Whether all windows are written."""
        return self.whole and self.drawn == self._written

    def append(self, batch: EncodedBatch | EncodedState) -> None:
        """Write the features of the next windows, or a state of the next; an error may come with later ones."""
        if (frames := getattr(batch, "frames", None)) is not None:
            self._check_writes(self._thread.write(partial(self._writing.append_state, frames)))
            return
        batch = cast("EncodedBatch", batch)
        write = partial(self._writing.append, raw=batch.raw, segments=batch.segments, starts=batch.starts)
        if batch.raw is None and not self._writes:
            write()
        else:
            self._check_writes(self._thread.write(write))
        self._written += len(batch.starts)
        self.seconds = batch.end

    def _check_writes(self, begun: Future[None] | None = None) -> None:
        """Raise what went wrong with all writes but one that has just begun."""
        writes, self._writes = self._writes, [begun] if begun else []
        for write in writes:
            write.result()

    def publish(self, attempts: Attempts) -> None:
        """Make the track a part of the store, and count it."""
        try:
            try:
                self._check_writes()
            except BaseException as error:
                self.give_up(error)
                raise
            self._writing.attributes.update(self.audio.attributes)
            self._context.__exit__(None, None, None)
            attempts.done(self.plan)
        finally:
            attempts.end(self.plan)

    def give_up(self, error: BaseException) -> None:
        """Remove what is staged, and let go of the lock."""
        self.closed = True
        wait(self._writes)
        self._context.__exit__(type(error), error, error.__traceback__)


def most_open() -> int:
    """Return how many tracks may be open at a time: each takes a file for its lock, and one for raw."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 128 if soft == resource.RLIM_INFINITY else max(8, min(128, soft // 8))
