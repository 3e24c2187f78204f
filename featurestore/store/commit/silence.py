"""Tracks of a writer that has fallen silent: others do them, though its locks are held still.

Some file systems (NFSv3) keep the locks of a host that has died. So a writer with tracks at hand sets the time of
change of its `owner.lock` all the time, and the folder in which it stages a track has the track's key as its name
until it begins to publish (see `StagingArea`). Who finds a track locked, and such a file unchanged for SILENCE
seconds of its own clock, moves that folder to ``.featurestore/dead/<owner>/<key>``. One of two renames comes first
and decides: this one, and the owner, should it live after all, finds the folder gone before it has changed any of
the store, and goes on with other tracks; or the one by which the owner begins to publish, and nobody takes it.

A track in ``dead`` has a lock of its own, `<key>.taken` beside its folder. Whoever wants the track needs it, also
when the owner's lock is free again at last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from featurestore.store import filesystem, reading
from featurestore.store.commit.flock import lock_file, unlock
from featurestore.store.commit.staging import BEAT, OWNER
from featurestore.store.paths import StorePaths

SILENCE = 45.0
"""Seconds without a sign after which a writer is taken for dead; builds wait longer than that for others."""

_TAKEN = ".taken"  # behind a key; no key has a dot
_LOOK = 0.5  # seconds between two looks at all writers, at least

_log = logging.getLogger("featurestore")


class SilentWriters:
    """What one writer, with a staging folder of its own, knows of how long the others have been silent."""

    def __init__(self, paths: StorePaths, own: Path) -> None:
        self._paths, self._own = paths, own.name
        self._heard: dict[str, tuple[int, float]] = {}  # last sign, and seconds since, by the name of the folder
        self._looked = time.monotonic()

    def lock(self, key: str, locked: contextlib.ExitStack, *, held: bool) -> bool:
        """Lock a track that dead writers have had, and throw away what they had of it; closing a stack unlocks it.

        Returns
        -------
        bool
            False if the track is somebody else's: another writer takes its place already, or its own lock is
            `held` and nobody who was at work on it is known to be dead.
        """
        try:
            found = _having(self._paths.dead, key)
            if held:
                found = found or self._take(key)
                if not found:
                    return False
            for folder in found:
                fd = lock_file(folder.with_name(key + _TAKEN))
                if fd is None:
                    return False
                locked.callback(unlock, fd)
                for name in os.listdir(folder):
                    filesystem.discard(folder / name, self._paths.trash)
        except (FileNotFoundError, PermissionError):  # it is swept in this moment, or somebody else's
            return False
        return True

    def _take(self, key: str) -> list[Path]:
        """Take a track from a silent writer; where its folder is now."""
        for folder in _having(self._paths.staging, key, self._silent()):
            owner = folder.parent
            # If this lock is free, so are all others of its owner: it is somebody else who holds the track.
            if _is_free(owner / OWNER):
                continue
            taken = self._paths.dead / owner.name / key
            for above in (self._paths.dead, taken.parent):
                with contextlib.suppress(FileExistsError):
                    filesystem.make_dir(above)
            filesystem.rename(folder, taken)
            _log.warning(
                "store %s: the writer %s has been silent for %.0f s, and another does its track with key %s",
                *(self._paths.name, owner.name, SILENCE, key),
            )
            return [taken]
        return []

    def _silent(self) -> list[str]:
        """Names of the staging folders whose owners have been silent for too long."""
        now = time.monotonic()
        if now - self._looked >= _LOOK or not self._heard:
            # Had this process, or its way to the disk, stood still, it would have heard nobody.
            passed = min(now - self._looked, BEAT)
            heard = {}
            for owner in reading.list_names(self._paths.staging):
                with contextlib.suppress(OSError):
                    sign = _sign_of(self._paths.staging / owner / OWNER)
                    last, silent = self._heard.get(owner, (None, 0.0))
                    heard[owner] = sign, silent + passed if sign == last else 0.0
            self._heard, self._looked = heard, now
        return [name for name, (_, silent) in self._heard.items() if silent >= SILENCE and name != self._own]


def sweep_dead(paths: StorePaths) -> None:
    """Remove what was taken from writers that are gone by now, with all their locks, unless others are at it."""
    for owner in reading.list_names(paths.dead):
        if not os.path.lexists(paths.staging / owner):
            with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
                for lock in (paths.dead / owner).glob(f"*{_TAKEN}"):
                    fd = lock_file(lock)
                    if fd is None:
                        break
                    stack.callback(unlock, fd)
                else:
                    gone = filesystem.move_to_trash(paths.dead / owner, paths.trash)
                    stack.close()
                    filesystem.remove_tree(gone)


def _having(parent: Path, key: str, owners: list[str] | None = None) -> list[Path]:
    """Folders of a track, of those who have or had it at hand."""
    # In one order: of two who lock several, one has all of them.
    names = sorted(reading.list_names(parent)) if owners is None else owners
    found = [parent / owner / key for owner in names]
    return [folder for folder in found if reading.is_dir(folder)]


def _sign_of(path: Path) -> int:
    # Opened, and not only looked at: a network file system may answer from what it remembers.
    fd = reading.open_file(path)
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


def _is_free(path: Path) -> bool:
    try:
        fd = lock_file(path)
    except OSError:
        return True
    if fd is None:
        return False
    unlock(fd)
    return True
