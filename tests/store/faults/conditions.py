"""The small features of the tests, and the conditions under which they are written."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt

from featurestore.spec import KINDS, FeatureSpec
from featurestore.store import fallbacks, filesystem, track_writer
from featurestore.store.bundles import layout as bundle_layout
from featurestore.store.format import shards
from featurestore.store.sealing import seal, wear
from featurestore.store.table import layout
from featurestore.store.writer import StoreWriter

SPEC = FeatureSpec.for_arrays(layers=2, dim=3)
STORE = "music/store.zarr"
"""Where the store is, below the folder of a scenario."""

Track = Mapping[str, npt.NDArray[np.float32]]
State = Mapping[str, Track | None]
"""What a reader sees: the arrays of each track; None for a track that is damaged."""


def track(name: str, revision: int = 0, kinds: tuple[str, ...] = KINDS) -> Track:
    """Features that no other track or revision has, also not in number."""
    random = np.random.default_rng(zlib.crc32(f"{name} {revision}".encode()))
    raw = random.standard_normal((2 + revision % 3, 2, 2 + revision % 2, 3)).astype(np.float32)
    whole = {"raw": raw, "segments": random.standard_normal(raw[:, :, 0].shape).astype(np.float32)}
    whole["aggregated"] = random.standard_normal((2, 3)).astype(np.float32)
    return {kind: whole[kind] for kind in kinds}


OPENED: list[StoreWriter] = []
"""The last writers of this process."""


def writer(folder: Path) -> StoreWriter:
    opened = StoreWriter(folder / STORE, spec=SPEC, overwrite=True)
    OPENED[:] = [*OPENED[-1:], opened]
    return opened


@contextlib.contextmanager
def small_tables() -> Iterator[None]:
    """A packed table of many shards, without thousands of tracks."""
    with mock.patch.object(layout, "SMALL_ROWS", 2), mock.patch.object(layout, "first_layout", return_value=0):
        yield


@contextlib.contextmanager
def small_bundles() -> Iterator[None]:
    """Bundles of two tracks, none of which is small, in shards of four rows and chunks of two."""
    with (
        small_tables(),
        mock.patch.object(bundle_layout, "CHUNK_BYTES", 24),
        mock.patch.object(bundle_layout, "SHARD_BYTES", 96),
        mock.patch.object(seal, "MOST_TRACKS", 2),
        mock.patch.object(wear, "LEAST_TRACKS", 1),
    ):
        yield


@contextlib.contextmanager
def damaged_bundles() -> Iterator[None]:
    """The same, of which one is damaged: a warning is a write, too."""
    with small_bundles(), mock.patch.object(logging.getLogger("featurestore"), "disabled", True):
        yield


@contextlib.contextmanager
def plain_file_system() -> Iterator[None]:
    """Neither an exchange of folders nor hard links."""
    with (
        small_bundles(),
        mock.patch.object(filesystem, "exchange", return_value=False),
        mock.patch("os.link", side_effect=PermissionError(1, "no links here")),
    ):
        yield


@contextlib.contextmanager
def no_links() -> Iterator[None]:
    """No hard links: a real error, of a link to another file system."""
    link = os.link

    def refuse(source: Path, target: Path, **options: bool) -> None:
        link(source, "/proc/link", **options)

    with small_tables(), mock.patch("os.link", refuse):
        yield


@contextlib.contextmanager
def fixed_folders() -> Iterator[None]:
    """Folders of tracks and the table can be neither renamed nor exchanged, by a real error (EXDEV)."""
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        parts = Path(source).parts
        published = parts[-2] in KINDS or parts[-1] == "packed"
        fixed = published and ".featurestore" not in parts and not os.path.isfile(target)
        rename(source, "/proc/rename" if fixed else target)

    with (
        small_tables(),
        mock.patch("os.rename", refuse),
        mock.patch.object(filesystem, "exchange", return_value=False),
    ):
        yield


@contextlib.contextmanager
def fixed_folders_and_bundles() -> Iterator[None]:
    """Both."""
    with small_bundles(), fixed_folders():
        yield


@contextlib.contextmanager
def closed_tracks() -> Iterator[None]:
    """Whoever wants to replace a track may not."""

    replace = fallbacks.replace_dir

    def refuse(source: Path, target: Path, backup: Path, *, keep: bool = True) -> None:
        if target.parent.name in KINDS:
            raise PermissionError(13, "permission denied", str(target))
        replace(source, target, backup, keep=keep)

    quiet = mock.patch.object(logging.getLogger("featurestore"), "disabled", True)  # a warning is a write, too
    with small_tables(), quiet, mock.patch.object(fallbacks, "replace_dir", refuse):
        yield


@contextlib.contextmanager
def away(*, years: int = 0, host: str | None = None) -> Iterator[None]:
    """Another time, on a host of another name."""
    seconds, now, now_ns = years * 365 * 86_400, time.time, time.time_ns
    with (
        mock.patch("time.time", side_effect=lambda: now() + seconds),
        mock.patch("time.time_ns", side_effect=lambda: now_ns() + seconds * 10**9),
        mock.patch("socket.gethostname", return_value=host or socket.gethostname()),
    ):
        yield


@contextlib.contextmanager
def two_threads() -> Iterator[None]:
    """Raw of three segments or more is written by two threads, two chunks of a revision 1 at a time."""
    with small_tables(), mock.patch.object(shards, "_LARGE", 150), mock.patch.object(shards, "_PIECE", 80):
        yield


@contextlib.contextmanager
def too_deep() -> Iterator[None]:
    """Folders in folders of a folder are too deep to be removed by recursion."""
    remove = shutil.rmtree

    def rmtree(path: Path, **options: bool) -> None:
        if any(below.is_dir() for below in Path(path).glob("*/*")):
            raise RecursionError
        remove(path, **options)

    with small_tables(), mock.patch("shutil.rmtree", rmtree):
        yield


@contextlib.contextmanager
def small_memory() -> Iterator[None]:
    """Rows wait in files, not in memory."""
    with small_tables(), mock.patch.object(track_writer, "SPOOL_BYTES", 60):
        yield
