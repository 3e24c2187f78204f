"""FeatureStore: reading a store."""

from __future__ import annotations

import difflib
import operator
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptTrackError, SettingError, StoreError, TrackNotFoundError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store import files, layout
from featurestore.store.keys import encode_key
from featurestore.store.layout import Places
from featurestore.store.packed import PackedTable, TableChangedError
from featurestore.store.packing import list_keys, track_ids_of
from featurestore.store.publish import is_published
from featurestore.store.tracks import TrackReader
from featurestore.store.verification import VerifyReport, verify
from featurestore.store.views import AggregatedView, RaggedView, TrackView
from featurestore.store.writer import StoreWriter

_ATTEMPTS = 20
# A folder's time of change tells nothing about changes within the clock's tick: wait until it is over.
_SETTLED_NS = 2_000_000_000
# Fewer rows of a shard than this share of it are read from their tracks.
_FEW = 64


@dataclass(frozen=True)
class _Catalogue:
    """Which tracks there are and where their aggregated features are."""

    track_ids: list[str]
    table: PackedTable | None
    direct: frozenset[str]  # tracks of the table whose row must not be used
    signature: tuple[Any, ...] | None


class FeatureStore:
    """Read a feature store. Cheap to make, picklable, safe after fork; holds no file open.

    Parameters
    ----------
    path : str or Path
        Folder of the store.

    Raises
    ------
    NotAStoreError
        If there is none.
    StoreVersionError
        If it was written by a newer release.

    Examples
    --------
    >>> store = FeatureStore("store.zarr")  # doctest: +SKIP
    >>> view = store.aggregated(layer=7)  # doctest: +SKIP
    >>> view.shape, view.dims  # doctest: +SKIP
    ((300, 768), ('track', 'feature'))
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._places = Places.of(self.path)
        with files.naming_the_store(self.path):
            self._spec = layout.read_root(self._places.root)
        self._reader = TrackReader(self._places, self._spec)
        self._cached: _Catalogue | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def __repr__(self) -> str:
        return f"<FeatureStore {str(self.path)!r}>"

    @property
    def spec(self) -> FeatureSpec:
        """Everything that identifies the store's features."""
        return self._spec

    @property
    def track_ids(self) -> list[str]:
        """Ids of all tracks: in the order of the packed table, then the others by id."""
        return list(self._catalogue().track_ids)

    def __len__(self) -> int:
        return len(self._catalogue().track_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.track_ids)

    def __contains__(self, track_id: object) -> bool:
        if not isinstance(track_id, str):
            return False
        try:
            key = encode_key(track_id)
        except SettingError:
            return False
        return is_published(self._places, key)

    def aggregated(
        self, layer: int | Sequence[int] | None = None, tracks: Sequence[str] | None = None
    ) -> AggregatedView:
        """One row per track: mean over its segments.

        Parameters
        ----------
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.
        tracks : sequence of str, optional
            Track ids, in this order; by default all, in the order of `track_ids`.

        Returns
        -------
        AggregatedView
            [track, feature] or [track, layer, feature].

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track; the message names ids that look alike.
        """
        return AggregatedView(self, layer, self._choose(tracks))

    def segments(
        self,
        track: str | None = None,
        layer: int | Sequence[int] | None = None,
        tracks: Sequence[str] | None = None,
    ) -> TrackView | RaggedView:
        """Segments of one track, or of all: mean over their frames.

        Parameters
        ----------
        track : str, optional
            Id of one track.
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.
        tracks : sequence of str, optional
            Where `track` is not given: ids of some tracks, in this order, instead of all.

        Returns
        -------
        TrackView or RaggedView
            [segment, (layer,) feature] of one track; [row, (layer,) feature] of many, with `row_tracks` and
            `row_starts`.

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track, or no segments of it.
        """
        if track is not None:
            self._choose([track])
            return TrackView(self, "segments", track, layer)
        return RaggedView(self, layer, self._choose(tracks))

    def raw(self, track: str, layer: int | Sequence[int] | None = None) -> TrackView:
        """Every frame of one track.

        Parameters
        ----------
        track : str
            Its id.
        layer : int or sequence of int, optional
            One layer, or several or (None) all, which keeps the layer dimension.

        Returns
        -------
        TrackView
            [segment, (layer,) frame, feature].

        Raises
        ------
        SettingError
            If the store has no such layer.
        TrackNotFoundError
            If the store has no such track, or no raw features of it.
        """
        self._choose([track])
        return TrackView(self, "raw", track, layer)

    def has(self, track_id: str, kinds: Sequence[str] = ("aggregated",)) -> bool:
        """Whether the store has these kinds of features of a track."""
        if unknown := set(kinds) - set(KINDS):
            raise SettingError(f"kinds are {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        if track_id not in self:
            return False
        with files.naming_the_store(self.path):
            current = self._reader.current(encode_key(track_id))
        return current is not None and set(kinds) <= set(current.attributes["kinds"])

    def provenance(self, track_id: str) -> dict[str, Any]:
        """What is known of a track: its audio, decoder, revision, fingerprint, starts of the windows, checksums.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track.
        """
        self._choose([track_id])
        with files.naming_the_store(self.path):
            current = self._reader.current(encode_key(track_id))
        if current is None:
            raise self._unknown(track_id)
        return dict(current.attributes)

    def info(self) -> dict[str, Any]:
        """Summary of the store: path, format, tracks, packed tracks, spec and fingerprint."""
        catalogue = self._catalogue()
        packed = 0 if catalogue.table is None else len(catalogue.table.rows.keys() - catalogue.direct)
        return {
            "path": str(self.path),
            "format": layout.FORMAT_VERSION,
            "tracks": len(catalogue.track_ids),
            "packed": packed,
            "fingerprint": self._spec.fingerprint,
            "spec": self._spec.to_dict(),
        }

    def verify(self, deep: bool = False) -> VerifyReport:
        """Check the store; see `VerifyReport`. `deep` reads every byte and checks every checksum."""
        with files.naming_the_store(self.path):
            return verify(self._reader, deep=deep)

    def pack(self) -> None:
        """Bring the packed table up to date."""
        with StoreWriter(self.path, spec=self._spec) as writer:
            writer.pack(wait=600)

    def remove(self, track_id: str) -> None:
        """Remove a track.

        Raises
        ------
        TrackNotFoundError
            If the store has no such track.
        TrackLockedError
            If a writer is at work on it.
        """
        if track_id not in self:
            raise self._unknown(track_id)
        with StoreWriter(self.path, spec=self._spec) as writer:
            writer.remove(track_id)

    # What views and the catalogue are made of.

    def _resolve_layers(self, layer: int | Sequence[int] | None) -> tuple[tuple[int, ...], list[int], bool]:
        """Layers, their positions in the store, and whether the layer dimension is dropped."""
        stored = self._spec.layers
        if layer is None:
            return stored, list(range(len(stored))), False
        single = isinstance(layer, int | np.integer)
        listed = [layer] if single else layer
        try:
            if isinstance(layer, str | bytes | bool | Mapping):
                raise TypeError
            wanted = tuple(map(operator.index, cast(Sequence[int], listed)))
        except TypeError:
            raise SettingError(f"layer is a number, a sequence of numbers or None, not {layer!r}") from None
        if missing := [x for x in wanted if x not in stored]:
            raise SettingError(
                f"the store {self.path} has no layer {', '.join(map(str, missing))}: "
                f"it has {', '.join(map(str, stored))}"
            )
        return wanted, [stored.index(x) for x in wanted], single

    def _choose(self, tracks: Sequence[str] | None) -> list[str]:
        if tracks is None:
            return self._catalogue().track_ids
        if isinstance(tracks, str):
            raise SettingError(f"tracks is a sequence of track ids, not one: [{tracks!r}]")
        # Looking at each folder is cheaper than listing them all only for a few.
        known: Container[str] = self if len(tracks) < 100 else set(self._catalogue().track_ids)
        for track_id in tracks:
            if track_id not in known:
                raise self._unknown(track_id)
        return list(tracks)

    def _unknown(self, track_id: object) -> TrackNotFoundError:
        close = difflib.get_close_matches(str(track_id), self._catalogue().track_ids[:50_000], n=3)
        hint = f": did you mean {', '.join(f'{other!r:.200}' for other in close)}?" if close else ""
        message = f"the store {self.path} has no track {track_id!r:.200}{hint}"
        return TrackNotFoundError(message, close_matches=close)

    def _catalogue(self) -> _Catalogue:
        with files.naming_the_store(self.path):
            signature = self._signature()
            cached = self._cached
            if cached is None or signature is None or cached.signature != signature:
                cached = self._cached = self._load(signature)
            return cached

    def _signature(self) -> tuple[Any, ...] | None:
        """Changes whenever the catalogue does; None while it cannot be told."""
        try:
            aggregated = self._places.kind("aggregated").stat().st_mtime_ns
            stale = self._places.stale.stat().st_mtime_ns
            packed = self._places.packed.stat()
        except FileNotFoundError:
            return None
        if abs(time.time_ns() - max(aggregated, stale)) < _SETTLED_NS:
            return None
        return aggregated, stale, packed.st_ino, packed.st_ctime_ns, packed.st_mtime_ns

    def _load(self, signature: tuple[Any, ...] | None) -> _Catalogue:
        try:
            marks = set(os.listdir(self._places.stale))
        except FileNotFoundError:
            table, marks = None, set()  # nothing says which rows of the table are superseded
        else:
            table = self._table()
        folder = self._places.kind("aggregated")
        if table is not None and not marks and folder.stat().st_mtime_ns == table.stamp:
            return _Catalogue(table.track_ids, table, frozenset(), signature)
        by_key = track_ids_of(self._reader, list_keys(self._places))
        present = set(by_key.values())
        packed = [] if table is None else [track_id for track_id in table.track_ids if track_id in present]
        rest = sorted(present.difference(packed))
        direct = {by_key[key] for key in marks & by_key.keys()}
        if table is not None:
            direct |= set(table.track_ids).difference(packed)  # removed since
        return _Catalogue(packed + rest, table, frozenset(direct), signature)

    def _table(self) -> PackedTable | None:
        root = files.open_root(self._places.root)
        try:
            return PackedTable.open(root, self._spec)
        finally:
            os.close(root)

    def _read_aggregated(self, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        with files.naming_the_store(self.path):
            for _ in range(_ATTEMPTS):
                catalogue = self._catalogue()
                try:
                    return self._gather(catalogue, ids, positions)
                except TableChangedError:
                    self._cached = None
        raise CorruptTrackError(f"{self.path}: the packed table is incomplete: run `fs-extract pack`")

    def _gather(self, catalogue: _Catalogue, ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        table = catalogue.table
        if table is None:
            rows = np.full(len(ids), -1, np.int64)
        elif ids is catalogue.track_ids and ids is table.track_ids:
            rows = np.arange(len(ids), dtype=np.int64)
        else:
            known, direct = table.rows, catalogue.direct
            rows = np.array([-1 if t in direct else known.get(t, -1) for t in ids], np.int64)
        if table is not None and len(ids):
            shards, counts = np.unique(rows // table.rows_per_shard, return_counts=True)
            few = shards[(counts * _FEW < table.rows_per_shard) & (shards >= 0)]
            rows[np.isin(rows // table.rows_per_shard, few)] = -1
        packed = np.flatnonzero(rows >= 0)
        root = files.open_root(self._places.root)
        try:
            if table is not None and len(packed) == len(ids) and len(ids):
                return table.read(root, rows, positions)
            out = np.empty((len(ids), len(positions), self._spec.dim), np.dtype(self._spec.dtype))
            if table is not None and len(packed):
                out[packed] = table.read(root, rows[packed], positions)
        finally:
            os.close(root)
        unpacked = np.flatnonzero(rows < 0).tolist()
        out[unpacked] = self._reader.read_rows([ids[i] for i in unpacked], positions)
        return out

    def _describe(self, kind: str, track_id: str) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
        """Shape of an array of a track, and where its segments start, seconds."""
        with (
            files.naming_the_store(self.path),
            self._reader.open(kind, encode_key(track_id), track_id) as array,
        ):
            return array.metadata.shape, np.asarray(array.metadata.attributes.get("starts", []), np.float64)

    def _read_track(
        self,
        kind: str,
        track_id: str,
        shape: tuple[int, ...],
        rows: npt.NDArray[np.int64] | None,
        positions: Sequence[int],
    ) -> npt.NDArray[Any]:
        with (
            files.naming_the_store(self.path),
            self._reader.open(kind, encode_key(track_id), track_id) as array,
        ):
            if array.metadata.shape != shape:
                raise StoreError(
                    f"{kind} of track {track_id!r} was replaced by another of the shape {array.metadata.shape}: "
                    "ask the store for a new view"
                )
            if kind == "raw":
                segments = None if rows is None else rows.tolist()
                return self._reader.read(array, layers=positions, segments=segments)
            block = self._reader.read(array, layers=positions)
            return block if rows is None else block[rows]
