"""What a push and a pull have in common: tracks are copied one by one, several at once, and errors are noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Event

from featurestore.errors import (
    CorruptTrackError,
    TrackAccessError,
    TrackExistsError,
    TrackLockedError,
    TrackNotFoundError,
)
from featurestore.shard import Shard
from featurestore.store.format.metadata import ArrayMetadata, encode_document, seal

_AT_ONCE = 8  # tracks
_SUBMITTED = 1_000  # tracks

_OF_ONE_TRACK = (TrackExistsError, TrackLockedError, TrackAccessError, TrackNotFoundError, CorruptTrackError)
"""Errors that keep one track from being copied; all others go on."""
Notify = Callable[[int, int], None]


@dataclass
class TransferReport:
    """What a push or pull did.

    Attributes
    ----------
    copied : int
        Tracks that were copied, or of which a kind was added.
    there : int
        Tracks that were there.
    failed : list of tuple of str
        Track ids, and why they were not copied.

    Examples
    --------
    >>> from featurestore.sharing import TransferReport
    >>> TransferReport(copied=3).ok
    True
    """

    copied: int = 0
    there: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all tracks are there."""
        return not self.failed


def of_shard(track_ids: Sequence[str], shard: str | None) -> list[str]:
    """The tracks of a part like "1/8" of a store, or of Slurm's "auto"; all by default."""
    part = None if shard is None else Shard.parse(shard)
    return [track_id for track_id in track_ids if part is None or part.holds(track_id)]


def narrowed(metadata: ArrayMetadata, kinds: Sequence[str]) -> bytes:
    """Document of a track's `aggregated` that says that it has these kinds."""
    attributes = {**metadata.attributes, "kinds": list(kinds)}
    return encode_document(seal(replace(metadata, attributes=attributes).document()))


def transfer(
    copy: Callable[[str], bool],
    track_ids: Sequence[str],
    report: TransferReport,
    notify: Notify | None,
    *,
    stopped: Event | None = None,
) -> None:
    """Copy tracks by `copy`, which says whether one was not there, and add what was done to a report.

    When it ends by an error or an interrupt, `stopped` tells those that are copied just then to end, too.
    """
    done, total = report.there, report.there + len(track_ids)

    def copy_or_fail(track_id: str) -> bool | Exception:
        try:
            return copy(track_id)
        except _OF_ONE_TRACK as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for first in range(0, len(track_ids), _SUBMITTED):
                some = track_ids[first : first + _SUBMITTED]
                for track_id, copied in zip(some, pool.map(copy_or_fail, some), strict=True):
                    if isinstance(copied, Exception):
                        report.failed.append((track_id, str(copied)))
                    else:
                        report.copied += copied
                        report.there += not copied
                    done += 1
                    if notify is not None:
                        notify(done, total)
        except BaseException:
            if stopped is not None:
                stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
