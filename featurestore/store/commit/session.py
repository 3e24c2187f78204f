"""WriterSession: what an open writer holds in a store, and the recovery of what dead ones have left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from featurestore.store.commit import heartbeat, recovery
from featurestore.store.commit.heartbeat import Heartbeat
from featurestore.store.commit.locks import TrackLocks
from featurestore.store.commit.staging import StagingArea, clean_stale
from featurestore.store.paths import StorePaths


class WriterSession:
    """Locks, a staging area and, where there are no locks, the heartbeat of a writer.

    Parameters
    ----------
    paths : StorePaths
        Of the store.
    durable : bool
        Whether what is finished survives a loss of power (fsync).
    """

    def __init__(self, paths: StorePaths, *, durable: bool) -> None:
        self._paths = paths
        self.durable = durable
        self.locks = TrackLocks(paths.locks)
        self._told: set[str] = set()
        self._heartbeat: Heartbeat | None = None
        self.staging = StagingArea(paths.staging, durable=durable)
        try:
            alive = paths.locks / heartbeat.NAME
            if self.staging.is_seen_by_others:
                heartbeat.refuse_others(alive)
            else:
                self._heartbeat = Heartbeat.begin(alive)
            clean_stale(paths, needed=self._recover())
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """Finish what was decided, and remove what is staged and not published."""
        try:
            self._recover()
        finally:
            self._end()

    def check(self) -> None:
        """Raise StoreAccessError if another process has taken this one for dead."""
        if self._heartbeat is not None:
            self._heartbeat.check()

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: float = 0.0, removing: bool = False) -> Iterator[None]:
        """Hold the lock of a track, which has no unfinished change then.

        Parameters
        ----------
        key : str
            Of the track.
        wait : float
            Seconds to wait for a writer that is at work on another track that shares the lock.
        removing : bool
            Whether a change that cannot be finished may be taken back instead.
        """
        self.check()
        with self.locks.holding(key, wait=wait):
            if (self._paths.journal / key).exists():
                recovery.finish(self._paths, key, durable=self.durable, back=removing)
            yield

    def _recover(self) -> set[str]:
        return recovery.recover(self._paths, self.locks, told=self._told)

    def _end(self) -> None:
        self.staging.close(self._paths.trash)
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
