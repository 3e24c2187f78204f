"""SealedTracks: which tracks are in the bundles of a store, and which of these are there still.

A bundle never changes. That a track of it is not there any more, as it was removed or replaced, is said by a file
in `bundles/removed`, whose name is that of the bundle and the number of the track in it.
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from featurestore.errors import CorruptTrackError
from featurestore.spec import FeatureSpec
from featurestore.store import filesystem, reading
from featurestore.store.bundles.bundle import Bundle, Recent
from featurestore.store.bundles.layout import NAME, TRACK_BITS, mark_name
from featurestore.store.bundles.marks import Marks
from featurestore.store.bundles.places import SealedPlaces
from featurestore.store.bundles.rows import damaged
from featurestore.store.format.keys import encode_keys
from featurestore.store.paths import BUNDLES, REMOVED, StorePaths

_log = logging.getLogger("featurestore")
_DAMAGE = errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR
_MASK = (1 << TRACK_BITS) - 1


class Place(NamedTuple):
    """Where a track is: a bundle, and the number of the track in it."""

    bundle: Bundle
    row: int

    @property
    def revision(self) -> str:
        return self.bundle.revision(self.row)


class _Known(NamedTuple):
    """Bundles that were seen, and where tracks are in them: number of the bundle, and of the track in it.

    What comes later has all but the names in common with what was there before, as long as no bundle goes.
    """

    names: frozenset[str]
    bundles: list[Bundle]
    rows: dict[str, int]
    more: dict[str, list[int]]  # the same of tracks that are in several
    bad: dict[str, str]  # names of bundles that cannot be opened, and what is wrong with them

    def places(self, key: str) -> list[int]:
        found = self.rows.get(key)
        if found is None:
            return []
        more = self.more.get(key, ())
        return sorted([found, *more], key=lambda code: self.bundles[code >> TRACK_BITS].name) if more else [found]

    def place(self, code: int) -> Place:
        return Place(self.bundles[code >> TRACK_BITS], code & _MASK)

    def mark(self, code: int) -> str:
        place = self.place(code)
        return mark_name(place.bundle.name, place.row)


class SealedTracks:
    """The tracks in the bundles of a store that is a folder. Holds no file open.

    A folder of a track supersedes what a bundle has of it: whoever asks here has looked for one. Which tracks are
    in a bundle that cannot be opened is not known: others go on.
    """

    def __init__(self, paths: StorePaths, spec: FeatureSpec) -> None:
        self._paths = paths
        self._spec = spec
        self._known = _Known(frozenset(), [], {}, {}, {})
        self._recent = Recent()
        self._marks = Marks(paths.removed)
        self._lock = Lock()

    def names(self) -> frozenset[str]:
        """Names of the bundles that are there now."""
        return frozenset(name for name in reading.list_names(self._paths.bundles) if NAME.fullmatch(name))

    def problems(self) -> dict[str, CorruptTrackError | OSError]:
        """Names of the bundles that are damaged, or cannot be read now, and what is wrong with them."""
        found = dict[str, CorruptTrackError | OSError]()
        for name in sorted(self.names()):
            try:
                self._open(name)
            except FileNotFoundError:
                continue
            except (CorruptTrackError, OSError) as error:
                found[name] = error
        return found

    def bundles(self, *, if_known: bool = False) -> list[Bundle]:
        """The bundles that are there now, by their names.

        Raises
        ------
        CorruptTrackError
            If one is damaged, unless only those that are known are asked for.
        """
        if not if_known:
            self.check()
        return sorted(self._look().bundles, key=lambda bundle: bundle.name)

    @property
    def are_all_known(self) -> bool:
        """Whether every bundle can be opened."""
        return not self._look().bad

    def check(self) -> None:
        """Raise CorruptTrackError if a bundle is damaged."""
        for message in self._look().bad.values():
            raise CorruptTrackError(message)

    def find(self, key: str, *, if_known: bool = False) -> Place | None:
        """Where a track is, None if it is in no bundle, or not there any more.

        Raises
        ------
        CorruptTrackError
            If it may be in a bundle that is damaged, unless only what is known is asked for.
        """
        known = self._known
        while True:
            for code in known.places(key):
                found = known.place(code)
                if not self.is_removed(found) and reading.exists(self._paths.bundles / found.bundle.name):
                    return found
            now = self._look()
            if now is known:
                if not if_known:
                    self.check()
                return None
            known = now

    def places(self, key: str) -> list[Place]:
        """All places of a track, whether it is there still or not."""
        known = self._look()
        return [known.place(code) for code in known.places(key)]

    def find_all(self, track_ids: Sequence[str]) -> SealedPlaces | None:
        """Where many tracks are; None if there are no bundles."""
        known = self._look()
        if not known.names:
            return None
        keys = encode_keys(track_ids)
        while True:
            codes = np.fromiter(map(known.rows.get, keys, itertools.repeat(-1)), np.int64, len(keys))
            found = np.flatnonzero(codes >= 0).tolist()
            removed = self._marks.for_some(len(found))
            self._check_marks()
            if removed or known.more:
                for at in found:
                    codes[at] = next((x for x in known.places(keys[at]) if known.mark(x) not in removed), -1)
            if (now := self._look()) is known:
                return SealedPlaces(known.bundles, codes >> TRACK_BITS, codes & _MASK)
            known = now  # marks go with their bundle

    def keys(self) -> set[str]:
        """Keys of all tracks that are in bundles and there still."""
        known = self._look()
        if not known.names:
            return set()
        gone = self.removed_rows()
        found: set[str] = set()
        for bundle in known.bundles:
            rows = gone.get(bundle.name)
            found.update(
                bundle.keys if rows is None else (key for row, key in enumerate(bundle.keys) if row not in rows)
            )
        return found

    def twice(self) -> list[str]:
        """Keys of tracks that several bundles have, and that are there still: only by hand it comes to that."""
        several = list(self._look().more)
        return [key for key in several if sum(not self.is_removed(place) for place in self.places(key)) > 1]

    def live(self, bundle: Bundle) -> Iterator[tuple[int, str]]:
        """Number and key of each track of a bundle that is there still."""
        removed = self.removed_rows().get(bundle.name, ())
        for row, key in enumerate(bundle.keys):
            if row not in removed:
                yield row, key

    def removed_rows(self) -> dict[str, set[int]]:
        """Numbers of the tracks that are not there any more, by the name of their bundle."""
        self._check_marks()
        found: dict[str, set[int]] = {}
        for mark in self._marks.names():
            name, _, row = mark.partition(".")
            found.setdefault(name, set()).add(int(row))
        return found

    def is_removed(self, place: Place) -> bool:
        """Whether a track of a bundle is not there any more."""
        if mark_name(place.bundle.name, place.row) in self._marks:
            return True
        self._check_marks()
        return False

    def _check_marks(self) -> None:
        """Raise CorruptTrackError if marks are lost: what was removed must not come back in silence."""
        if not reading.is_dir(self._paths.removed) and self.names():
            raise CorruptTrackError(
                f"{BUNDLES}/{REMOVED} is missing, which says what was removed or replaced of bundles: bring it "
                "back; or run verify --repair, after which all that is there again"
            )

    def mark_removed(self, key: str, *, durable: bool, but: str = "") -> bool:
        """Say that what bundles have of a track is not there any more, `but` for a revision; whether any was.

        The caller holds the track's lock. What is `durable` survives a loss of power.
        """
        return self.mark([place for place in self.places(key) if place.revision != but], durable=durable)

    def mark(self, places: Sequence[Place], *, durable: bool) -> bool:
        """Say that tracks are not in these places any more; whether one was there."""
        there = [place for place in places if not self.is_removed(place)]
        for place in there:
            filesystem.touch(self._paths.removed / mark_name(place.bundle.name, place.row))
        if places and durable:  # marks that are there may be of a writer that died before it made sure of them
            filesystem.sync_dir(self._paths.removed)
        return bool(there)

    def _look(self) -> _Known:
        """What is known of the bundles that are there now: they are listed each time, and opened once."""
        names = self.names()
        known = self._known
        if names == known.names and not known.bad:
            return known
        with self._lock:
            if names != self._known.names or self._known.bad:
                self._known = self._opened(names, self._known)
            return self._known

    def _opened(self, names: frozenset[str], before: _Known) -> _Known:
        kept = [bundle for bundle in before.bundles if bundle.name in names]
        fresh, bad = list[Bundle](), dict[str, str]()
        for name in sorted(names - {bundle.name for bundle in kept}):
            try:
                fresh.append(self._open(name))
            except FileNotFoundError:
                names -= {name}
            except CorruptTrackError as error:
                bad[name] = str(error)
                if name not in before.bad:
                    _log.warning("store %s: %s", self._paths.name, error)
        if (names, bad) == (before.names, before.bad):
            return before
        _, bundles, rows, more, _ = before
        if len(kept) < len(bundles):
            bundles, rows, more, fresh = [], {}, {}, kept + fresh
        for bundle in fresh:
            number = len(bundles)
            bundles.append(bundle)  # first: others may be reading what is added to
            codes = range(number << TRACK_BITS, (number << TRACK_BITS) + len(bundle.keys))
            for key in filter(rows.__contains__, bundle.keys):
                more.setdefault(key, []).append(rows[key])
            rows.update(zip(bundle.keys, codes, strict=True))
        return _Known(names, bundles, rows, more, bad)

    def _open(self, name: str) -> Bundle:
        """Open a bundle; FileNotFoundError if it is gone."""
        place = self._paths.bundles / name
        try:
            return Bundle.open(self._paths, name, self._spec, self._recent)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not reading.exists(place):
                raise
            if error.errno in _DAMAGE:
                raise damaged(f"{BUNDLES}/{name}", f"{error.strerror}: {error.filename}") from None
            # It may be read the next time.
            raise OSError(error.errno, error.strerror, str(place)) from error
