"""WriterSession: what an open writer holds in a store, and the recovery of what dead ones have left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from featurestore.errors import TrackExistsError
from featurestore.store import filesystem
from featurestore.store.bundles.sealed import SealedTracks
from featurestore.store.commit import heartbeat, recovery
from featurestore.store.commit.heartbeat import Heartbeat
from featurestore.store.commit.locks import TrackLocks, held_by, way_out
from featurestore.store.commit.record import TransactionRecord
from featurestore.store.commit.silence import SilentWriters, sweep_dead
from featurestore.store.commit.staging import StagingArea, clean_stale
from featurestore.store.commit.transaction import commit
from featurestore.store.format.keys import encode_key
from featurestore.store.format.metadata import SEALED_VERSION
from featurestore.store.format.root import upgrade_root
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.paths import StorePaths


class WriterSession:
    """Locks, a staging area and, where there are no locks, the heartbeat of a writer."""

    def __init__(self, paths: StorePaths, sealed: SealedTracks, *, durable: bool) -> None:
        self._paths = paths
        self._sealed = sealed
        self.durable = durable
        self._told: set[str] = set()
        self._heartbeat: Heartbeat | None = None
        self.staging = StagingArea(paths.staging, durable=durable)
        self.locks = TrackLocks(paths.locks, SilentWriters(paths, self.staging.path))
        try:
            alive = paths.locks / heartbeat.NAME
            if self.staging.is_seen_by_others:
                heartbeat.refuse_others(alive)
            else:
                self._heartbeat = Heartbeat.begin(alive)
            if self._sealed.names():  # the root may be that of another store, which was copied over this one
                upgrade_root(paths, self.staging.path, SEALED_VERSION)
            clean_stale(paths, needed=self._recover())
            sweep_dead(paths)
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

    def packer(self) -> str:
        """Who has been packing, where this writer has waited for it in vain, and what to do."""
        path = self._paths.locks / "pack.lock"
        return f"another writer has been packing or sealing ({held_by(path)}): {way_out(path)}"

    @contextlib.contextmanager
    def lock(self, key: str, *, wait: float = 0.0, removing: bool = False) -> Iterator[None]:
        """Hold the lock of a track, which has no unfinished change then; waits as `TrackLocks.holding`.

        When the track is removed, a change that cannot be finished may be taken back instead.
        """
        self.check()
        with self.locks.holding(key, wait=wait):
            if (self._paths.journal / key).exists():
                recovery.finish(self._paths, self._sealed, key, durable=self.durable, back=removing)
            yield

    @contextlib.contextmanager
    def publishing(
        self, track_id: str, has_row: Callable[[str], bool], *, replace: bool, wait: float = 60.0
    ) -> Iterator[tuple[Path, Callable[[TransactionRecord], None]]]:
        """Publish a track when the block ends, from a folder that it fills, under the track's lock.

        `has_row` tells whether the packed table has a row of a key.

        Yields
        ------
        folder : Path
            Empty.
        record : callable
            Takes what is to be done with the folder, at last.
        """
        key, records = encode_key(track_id), list[TransactionRecord]()
        with contextlib.ExitStack() as stack:
            with translate_os_errors(self._paths.name):
                stack.enter_context(self.lock(key, wait=wait))
                # A folder supersedes what a bundle may have of it that is damaged.
                sealed = self._sealed.find(key, if_known=True) is not None
                there = sealed or self._paths.array("aggregated", key).exists()
                if not replace and there:
                    raise TrackExistsError(
                        f"the store {self._paths.name} has the track {track_id!r}: pass `overwrite=True` to "
                        "replace it"
                    )
                folder = self.staging.folder(key)
            try:
                yield folder, records.append
                with translate_os_errors(self._paths.name):
                    folder = self.staging.keep(folder)
                    options = {"has_row": has_row(key), "durable": self.durable}
                    emptied = commit(self._paths, self._sealed, folder, key, records[-1], **options)
            except BaseException:
                with contextlib.suppress(OSError):  # else it goes when the writer is closed
                    recovery.rollback(self._paths, self._sealed, folder)
                    filesystem.discard(folder, self._paths.trash)
                raise
            if emptied:
                self.staging.reuse(folder)

    def _recover(self) -> set[str]:
        return recovery.recover(self._paths, self._sealed, self.locks, told=self._told)

    def _end(self) -> None:
        self.staging.close(self._paths.trash)
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
