"""A track at hand: its lock is held and its arrays are staged while its windows go through the model."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from featurestore.pipeline.plan import TrackPlan
from featurestore.pipeline.prefetch import TrackAudio
from featurestore.store.track_writer import TrackWriter

if TYPE_CHECKING:
    from featurestore.encode import EncodedBatch


class OpenTrack:
    """A track that is being written.

    Parameters
    ----------
    plan : TrackPlan
    audio : TrackAudio
        Of the track.
    context : context manager of TrackWriter
        What publishes the track when it is left without an error.

    Raises
    ------
    TrackLockedError, StoreError
        If the context cannot be entered.

    Attributes
    ----------
    drawn : int
        Windows that are on their way or written.
    whole : bool
        No more windows will be drawn.
    closed : bool
        Published or given up.
    seconds : float
        Audio that is written.
    """

    def __init__(self, plan: TrackPlan, audio: TrackAudio, context: AbstractContextManager[TrackWriter]) -> None:
        self.plan, self.audio = plan, audio
        self.drawn = self._written = 0
        self.whole = self.closed = False
        self.seconds = 0.0
        self.began = time.monotonic()
        self._context = context
        self._writing = context.__enter__()

    @property
    def complete(self) -> bool:
        """Whether all windows are written."""
        return self.whole and self.drawn == self._written

    def append(self, batch: EncodedBatch) -> None:
        """Write the features of the next windows."""
        self._writing.append(raw=batch.raw, segments=batch.segments, starts=batch.starts)
        self._written += len(batch.starts)
        self.seconds = batch.end

    def publish(self) -> None:
        """Make the track a part of the store. It is closed, even if that fails."""
        self.closed = True
        self._writing.attributes.update(self.audio.attributes)
        self._context.__exit__(None, None, None)

    def give_up(self, error: BaseException) -> None:
        """Remove what is staged, and let go of the lock."""
        self.closed = True
        self._context.__exit__(type(error), error, error.__traceback__)


def most_open() -> int:
    """Tracks that may be open at a time: each takes a file for its lock, and one for raw."""
    try:
        import resource
    except ModuleNotFoundError:  # not on this system
        return 64
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 128 if soft == resource.RLIM_INFINITY else max(8, min(128, soft // 8))
