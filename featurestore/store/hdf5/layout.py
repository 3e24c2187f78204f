"""What is where in the file, and opening it. Files may be hostile: nothing outside them is read."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from featurestore.choices import format_of
from featurestore.errors import CorruptTrackError, MissingDependencyError, NotAStoreError, StoreVersionError
from featurestore.spec import FeatureSpec

FORMAT = 1
ROWS = {"aggregated": 1024, "segments": 256}
"""Rows of a chunk at most; it has one layer."""
_FILTERS = {1}
"""Deflate, of text alone: every library of HDF5 has it, so that none is loaded from elsewhere."""
_MAX_TEXT = 2**31
"""Bytes of the longest table of text, when it is read."""


def is_hdf5(path: str | Path) -> bool:
    """Whether a path is named as a file of HDF5."""
    return format_of(Path(path)) == "hdf5"


def import_h5py() -> ModuleType:
    """h5py; MissingDependencyError says how to install it."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py is needed for HDF5: pip install 'featurestore[hdf5]'") from error
    module: ModuleType = h5py
    return module


@contextmanager
def opened(path: Path, fd: int | None = None) -> Iterator[Any]:
    """The file, for reading, by its descriptor if it is open already: the path may be that of another by now.

    Raises
    ------
    NotAStoreError
        If there is no such file, or it is none of HDF5.
    CorruptTrackError
        If what is read in the block is damaged.
    """
    h5py = import_h5py()
    try:
        file = h5py.File(path if fd is None else io.FileIO(fd, closefd=False), "r", locking=False)
    except OSError as error:
        if not path.exists():
            raise NotAStoreError(f"{path} does not exist: give a file that `fs-extract export` wrote") from None
        what = "a folder" if path.is_dir() else f"no file of HDF5, or one that was cut off ({error})"
        raise NotAStoreError(f"{path} is {what}: export it again from its store") from None
    with file, translate_damage(path):
        yield file


@contextmanager
def translate_damage(path: Path) -> Iterator[None]:
    """Whatever is wrong with what a file holds is a CorruptTrackError, unless it is an error of ours already."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if type(error).__module__.startswith("featurestore"):
            raise
        raise CorruptTrackError(f"{path} is damaged: {error}: export it again from its store") from error


def read_spec(file: Any, path: Path) -> FeatureSpec:
    """The spec of a file's features.

    Raises
    ------
    NotAStoreError
        If `fs-extract export` did not write it.
    StoreVersionError
        If a newer release did.
    """
    try:
        version, text, fingerprint = (
            file.attrs["featurestore_" + name] for name in ("format", "spec", "fingerprint")
        )
        version = int(version)
    except (KeyError, TypeError, ValueError, OSError):
        raise NotAStoreError(
            f"{path} holds no features of this library: `fs-extract export` writes such files"
        ) from None
    if version > FORMAT:
        raise StoreVersionError(
            f"{path} has the format {version}, this release knows {FORMAT}: upgrade featurestore"
        )
    try:
        spec = FeatureSpec.from_dict(json.loads(text))
        if spec.fingerprint != fingerprint:
            raise ValueError("the spec does not match its fingerprint")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptTrackError(f"{path}: the spec is damaged: {error}: export it again from its store") from None
    return spec


def dataset(file: Any, name: str, shape: tuple[int | None, ...], kinds: str) -> Any:
    """A dataset of the file itself, of this shape (None: any size) and these kinds of numpy's types.

    Raises
    ------
    ValueError
        If it is none: missing, a link, or stored elsewhere; or if it promises more than the file holds.
    """
    h5py = import_h5py()
    found = file
    for part in name.split("/"):
        if not isinstance(found, h5py.Group) or not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"there is no {name}")
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is no dataset")
    plist = found.id.get_create_plist()
    filters = {plist.get_filter(number)[0] for number in range(plist.get_nfilters())}
    if found.is_virtual or found.external or not filters <= _FILTERS:
        raise ValueError(f"{name} is stored elsewhere, or by an unknown filter")
    if found.dtype.kind not in kinds or len(found.shape) != len(shape):
        raise ValueError(f"{name} has the shape {found.shape} and the type {found.dtype}")
    if any(size not in (None, real) for size, real in zip(shape, found.shape, strict=True)):
        raise ValueError(f"{name} has the shape {found.shape}, not {shape}")
    size = math.prod(found.shape) * found.dtype.itemsize
    stored = found.id.get_storage_size()
    if size > (_MAX_TEXT if 1 in filters else stored):
        raise ValueError(f"{name} promises {size} bytes, and has {stored}")
    return found
