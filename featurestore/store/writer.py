"""StoreWriter: creating a store and writing tracks into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from featurestore.addresses import noted_path
from featurestore.errors import SettingError, TrackNotFoundError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store.commit.record import TransactionRecord
from featurestore.store.commit.session import WriterSession
from featurestore.store.commit.staging import owning
from featurestore.store.commit.transaction import commit
from featurestore.store.creation import create_or_check
from featurestore.store.format.keys import encode_key
from featurestore.store.os_errors import translate_os_errors
from featurestore.store.paths import StorePaths, resolve_store_path
from featurestore.store.repair import repair
from featurestore.store.sealing.packing import pack_and_seal
from featurestore.store.table.index import TrackIndex
from featurestore.store.track_reader import TrackReader
from featurestore.store.track_writer import TrackWriter
from featurestore.store.verify import VerifyReport


class StoreWriter:
    """Writes tracks into a store, next to any number of other writers and readers.

    The store is created if there is none. Opening it finishes or sweeps away what dead writers left.

    Parameters
    ----------
    path : str or Path
        Folder of the store.
    spec : FeatureSpec
        Identifies everything that will be written; must be the store's own.
    overwrite : bool
        Whether a track that exists is replaced, where a call does not say so itself.
    durable : bool
        Whether the store, and what is published, survives a loss of power (fsync).

    Raises
    ------
    NotAStoreError
        If the path holds something else.
    StoreVersionError
        If the store was written by a newer release.
    SpecMismatchError
        If the store holds features of other settings.
    StoreAccessError
        If the store cannot be written.

    Examples
    --------
    >>> with StoreWriter("mine.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8)) as writer:
    ...     writer.put("a", {"segments": np.ones((5, 2, 8))})
    >>> FeatureStore("mine.zarr").aggregated(layer=1).to_numpy().shape
    (1, 8)
    """

    def __init__(
        self, path: str | Path, *, spec: FeatureSpec, overwrite: bool = False, durable: bool = True
    ) -> None:
        self.path = resolve_store_path(path)
        self.spec = spec
        self.overwrite = overwrite
        self.durable = durable
        self._paths = StorePaths.of(self.path)
        self._reader = TrackReader(self._paths, spec)
        with translate_os_errors(self.path):
            create_or_check(self._paths, spec, self.path, durable=durable)
            self.session = WriterSession(self._paths, self._reader.sealed, durable=durable)
        self._index = TrackIndex(self._reader)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what was decided, and remove what is staged and not published.

        Examples
        --------
        >>> writer = StoreWriter("mine.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8))
        >>> writer.put("a", {"aggregated": np.ones((2, 8))})
        >>> writer.close()
        """
        with translate_os_errors(self.path):
            self.session.close()

    def existing(self, track_id: str) -> dict[str, Any] | None:
        """Return the attributes of a published track, None if there is none.

        Raises
        ------
        CorruptTrackError
            If its metadata is damaged.

        Examples
        --------
        >>> with StoreWriter("mine.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8)) as writer:
        ...     writer.put("a", {"aggregated": np.ones((2, 8))}, attributes={"genre": "rock"})
        ...     writer.existing("a")["genre"], writer.existing("b")
        ('rock', None)
        """
        with translate_os_errors(self.path):
            found = self._reader.current(encode_key(track_id))
        return None if found is None else dict(found.attributes)

    @contextlib.contextmanager
    def track(
        self,
        track_id: str,
        *,
        kinds: Sequence[str] = KINDS,
        overwrite: bool | None = None,
        attributes: Mapping[str, Any] | None = None,
        wait: float = 60.0,
    ) -> Iterator[TrackWriter]:
        """Write one track piece by piece; it is published as a whole when the block ends.

        Parameters
        ----------
        track_id : str
            Any text of 1 to 65,536 bytes.
        kinds : sequence of str
            What is stored of it; "aggregated" always is.
        overwrite : bool, optional
            Whether a track that exists is replaced; by default, what the writer was opened with.
        attributes : mapping, optional
            JSON values that are stored with each of its arrays, under names that are not the store's own.
        wait : float
            Seconds to wait for a writer that is at work on another track that shares the lock.

        Yields
        ------
        TrackWriter
            Its `append` takes batches of segments.

        Raises
        ------
        TrackLockedError
            At once, if another writer is at work on the track.
        TrackExistsError
            If it exists and is not to be replaced.
        TrackAccessError
            If its files, or its lock, belong to somebody else who does not let them be changed.
        StoreAccessError
            If the disk is full or fails. Nothing of the track is published then, unless its last step fails: to
            make sure that what is in its place stays there.

        Examples
        --------
        >>> with StoreWriter("mine.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8)) as writer:
        ...     with writer.track("a", kinds=["segments"]) as track:
        ...         for start in (0.0, 2.5, 5.0):
        ...             track.append(segments=np.ones((1, 2, 8)), starts=[start])
        >>> FeatureStore("mine.zarr").segments("a").shape
        (3, 2, 8)
        """
        chosen = tuple(kind for kind in KINDS if kind in {*kinds, "aggregated"})
        if unknown := set(kinds) - set(KINDS):
            raise SettingError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        replace = self.overwrite if overwrite is None else overwrite
        with self.session.publishing(track_id, self._index.has_row, replace=replace, wait=wait) as (
            folder,
            record,
        ):
            given = dict(attributes or {})
            with TrackWriter(track_id, folder, self.spec, chosen, given, store=self.path) as writer:
                yield writer
                with translate_os_errors(self.path), owning(folder):
                    record(writer.finish())

    def put(
        self,
        track_id: str,
        arrays: Mapping[str, npt.ArrayLike],
        *,
        overwrite: bool | None = None,
        attributes: Mapping[str, Any] | None = None,
        starts: Sequence[float] | None = None,
        audio: str | Path | None = None,
    ) -> None:
        """Write one track from whole arrays.

        Parameters
        ----------
        track_id : str
            Any text of 1 to 65,536 bytes.
        arrays : mapping of str to array_like
            "raw" [segment, layer, frame, feature], "segments" [segment, layer, feature], "aggregated"
            [layer, feature]; those that are given are stored, and a missing "aggregated" is derived.
        overwrite, attributes
            As in `track`.
        starts : sequence of float, optional
            Where the segments start in the track, seconds.
        audio : path-like, optional
            The file that these are the features of: a build of the same settings leaves it alone.

        Raises
        ------
        SettingError
            If a shape does not fit the store.

        Examples
        --------
        >>> with StoreWriter("mine.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8)) as writer:
        ...     writer.put("a", {"segments": np.arange(32).reshape(2, 2, 8)})
        >>> FeatureStore("mine.zarr").aggregated(layer=0)[0, :3]
        array([ 8.,  9., 10.], dtype=float32)
        """
        if not arrays or set(arrays) - set(KINDS):
            raise SettingError(f"arrays are some of {', '.join(KINDS)}, not {sorted(arrays)}")
        if audio is not None:
            attributes = {**(attributes or {}), "audio": _identity(Path(audio))}
        with self.track(track_id, kinds=tuple(arrays), overwrite=overwrite, attributes=attributes) as writer:
            if "aggregated" in arrays:
                writer.set_aggregated(arrays["aggregated"])
            if "raw" in arrays or "segments" in arrays:
                writer.append(raw=arrays.get("raw"), segments=arrays.get("segments"), starts=starts)

    def remove(self, track_id: str) -> None:
        """Remove a track.

        Raises
        ------
        TrackNotFoundError
            If there is none.
        TrackLockedError
            If another writer is at work on it.

        Examples
        --------
        >>> with StoreWriter("mine.zarr", spec=FeatureSpec.for_arrays(layers=2, dim=8)) as writer:
        ...     writer.put("a", {"aggregated": np.ones((2, 8))})
        ...     writer.remove("a")
        >>> len(FeatureStore("mine.zarr"))
        0
        """
        key = encode_key(track_id)
        with translate_os_errors(self.path), self.session.lock(key, wait=60.0, removing=True):
            if not self._reader.is_there(key):
                raise TrackNotFoundError(f"the store {self.path} has no track {track_id!r}")
            folder = self.session.staging.folder()
            record = TransactionRecord((), uuid.uuid4().hex)
            options = {"has_row": True, "durable": self.durable}
            commit(self._paths, self._reader.sealed, folder, key, record, **options)

    def repair(self, *, deep: bool = True) -> tuple[VerifyReport, list[Path]]:
        """Put aside what is damaged and build the packed table again where it is wrong.

        A change that was decided on and cannot be finished is taken back, if nothing of it is placed.

        Parameters
        ----------
        deep : bool
            Whether to read every byte to find it.

        Returns
        -------
        VerifyReport
            What was wrong.
        list of Path
            Where the folders of damaged tracks are now; nothing is deleted.

        Examples
        --------
        >>> with StoreWriter("features.zarr", spec=FeatureStore("features.zarr").spec) as writer:
        ...     report, moved = writer.repair()
        >>> report.ok, moved
        (True, [])
        """
        with translate_os_errors(self.path):
            return repair(self._reader, self.session, deep=deep)

    @property
    def packed(self) -> int:
        """Number of rows of the packed table."""
        with translate_os_errors(self.path):
            return self._index.packed_rows

    def pack(self, *, wait: float = 0.0, thorough: bool = True, seal: bool | None = None, above: int = 0) -> bool:
        """Bring the packed table up to date, and seal or unseal tracks.

        Parameters
        ----------
        wait : float
            Seconds to wait for another writer that is packing.
        thorough : bool
            Whether to look at each packed track and at each file of the table, which shows what was put back by
            hand. Without it what came, went or was marked is looked at, which takes a second for a million tracks.
        seal : bool, optional
            True moves all tracks from their folders into bundles of thousands, in a few large files; `raw` stays.
            Bundles of which more than half is superseded or removed, and small ones, are written anew with them.
            False brings all back into folders. By default they stay where they are.
        above : int
            Seals only if more than so many tracks are in folders; then, no bundle has fewer than 1,024.

        Returns
        -------
        bool
            False if another writer was packing all the time.

        Raises
        ------
        SettingError
            If features that are compressed are to be sealed.
        StoreAccessError
            Also if there is no room for a bundle beside the folders of its tracks; or if a writer of another host
            may be at work to which locks of this one do not show: then nothing is sealed.
        TrackLockedError
            If other writers are at work on tracks that are to be unsealed: the others are.

        Examples
        --------
        >>> with StoreWriter("features.zarr", spec=FeatureStore("features.zarr").spec) as writer:
        ...     writer.pack(wait=10.0)
        True
        """
        with translate_os_errors(self.path):
            self.session.check()
            index, session = self._index, self.session
            return pack_and_seal(index, session, wait=wait, thorough=thorough, seal=seal, above=above)


def _identity(path: Path) -> dict[str, Any]:
    """Return by what a build knows a file of audio again."""
    with path.open("rb") as file:
        sha256, status = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno())
    return {**noted_path(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
