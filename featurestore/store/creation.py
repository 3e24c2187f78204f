"""Making a new store, and opening one for writing."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from featurestore.choices import format_of
from featurestore.errors import NotAStoreError, SettingError, SpecMismatchError, StoreAccessError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store import filesystem, reading
from featurestore.store.commit.locks import exclusive
from featurestore.store.commit.staging import StagingArea
from featurestore.store.format.metadata import (
    METADATA,
    encode_document,
    group_document,
    hidden_document,
    root_document,
)
from featurestore.store.format.root import read_root
from featurestore.store.paths import HIDDEN, HIDDEN_DIRS, StorePaths, invalid_paths, missing_directories

_OF_VOLUMES = "lost+found"
_PATIENCE = 60.0  # seconds


def create_or_check(paths: StorePaths, spec: FeatureSpec, name: Path, *, durable: bool) -> None:
    """Make sure that there is a store of this spec, ready for writers.

    Raises
    ------
    SettingError
        If there is no store, and the path is named as a file.
    NotAStoreError
        If the path holds something else.
    StoreVersionError
        If the store was written by a newer release.
    SpecMismatchError
        If the store holds features of other settings.
    """
    root = paths.root
    if is_vacant(root):
        if format_of(root) is not None:
            raise SettingError(
                f"{name} would be a folder, and {root.suffix.lower()} is a suffix of files: name the store "
                "without it, and export the file from it"
            )
        _create(paths, spec, durable=durable)
    stored = read_root(paths).spec
    if differences := stored.differences(spec):
        listed = "; ".join(f"`{key}` is {old!r}, not {new!r}" for key, (old, new) in differences.items())
        raise SpecMismatchError(
            f"the store {name} holds features of other settings ({listed}): use its settings, or another store",
            differences=differences,
        )
    for folder in invalid_paths(paths):
        raise NotAStoreError(
            f"{folder} is a link or a file where a store has a folder: nothing is written before it is moved away"
        )
    if missing_directories(paths) or not (paths.hidden / METADATA).exists():
        _restore_hidden(paths, durable=durable)
    if durable:
        # Whoever made the store may not have lived to do it.
        filesystem.sync_parent(root)


def is_vacant(path: Path) -> bool:
    """Whether there is nothing at a path, an empty folder or a store that was begun, so that a store can be made.

    Raises
    ------
    NotAStoreError
        If it is vacant and inside a store, where none may be made.
    """
    if os.path.lexists(path) and not (path.is_dir() and _is_begun(path)):
        return False
    root = StorePaths.of(path).root
    for parent in root.parents:
        if (parent / METADATA).exists():
            try:
                read_root(StorePaths(parent))
            except NotAStoreError:
                continue  # a group of somebody else's
            raise NotAStoreError(f"{root} is inside the store {parent}: name a folder beside it")
    return True


def _is_begun(root: Path) -> bool:
    """Whether a folder holds nothing but what a writer makes before the root's metadata, and no track."""
    names = set(os.listdir(root)) - {_OF_VOLUMES, HIDDEN}
    if names - set(KINDS) or not all(reading.is_dir(root / name) for name in names):
        return False
    hidden = root / HIDDEN  # which another writer may make just now
    if os.path.lexists(hidden) and not reading.is_dir(hidden):
        return False
    if set(reading.list_names(hidden)) - {METADATA, *HIDDEN_DIRS}:
        return False
    return all(set(os.listdir(root / name)) <= {METADATA} for name in names)


def _create(paths: StorePaths, spec: FeatureSpec, *, durable: bool) -> None:
    """Make an empty store in its place, which is a store once the root's metadata is there: it comes last."""
    made = False
    try:
        made = filesystem.make_parents(paths.root, durable=durable)
    except NotADirectoryError:
        raise NotAStoreError(f"{paths.root} is below a file, not a folder") from None
    if not paths.root.is_dir():
        raise NotAStoreError(f"{paths.root} is a file, not a folder of a store")
    try:
        _make_hidden(paths)
        _fill(paths, spec, durable=durable)
    except BaseException:
        if made and not os.path.lexists(paths.root / METADATA):
            filesystem.remove_tree(paths.root)
        raise


def _fill(paths: StorePaths, spec: FeatureSpec, *, durable: bool) -> None:
    area = StagingArea(paths.staging)
    try:
        for kind in KINDS:
            _make_missing(paths.kind(kind))
            _put(area, group_document({}), paths.kind(kind), durable=durable)
        _put(area, hidden_document(), paths.hidden, durable=durable)
        if durable:
            filesystem.sync_dir(paths.root)
        # The spec of whoever is first; all else is the same in all stores.
        _put_first(area, root_document(spec), paths, durable=durable)
    finally:
        area.close()


def _put(area: StagingArea, document: dict[str, Any], folder: Path, *, durable: bool) -> None:
    """Write the metadata of a folder, if it has none."""
    if not os.path.lexists(folder / METADATA):
        content = encode_document(document)
        filesystem.replace_file(folder / METADATA, content, area.path / METADATA, durable=durable)


def _put_first(area: StagingArea, document: dict[str, Any], paths: StorePaths, *, durable: bool) -> None:
    """Write the metadata of the root where none is, or leave what somebody else was faster to write."""
    staged, target = area.path / METADATA, paths.root / METADATA
    filesystem.write_file(staged, encode_document(document))
    if durable:
        filesystem.sync_file(staged)
    try:
        with contextlib.suppress(FileExistsError):
            filesystem.link(staged, target)
    except OSError:  # no hard links here: writers that make the store take turns
        with exclusive(paths.locks / "pack.lock", timeout=_PATIENCE) as held:
            if not held:
                raise StoreAccessError(
                    f"another process has been making the store {paths.root} for {_PATIENCE:.0f} s: try again"
                ) from None
            if not os.path.lexists(target):
                filesystem.rename(staged, target)
    if durable:
        filesystem.sync_dir(paths.root)


def _make_hidden(paths: StorePaths) -> None:
    _make_missing(paths.hidden)
    for name in HIDDEN_DIRS:
        _make_missing(paths.hidden / name)


def _make_missing(folder: Path) -> None:
    with contextlib.suppress(FileExistsError):
        filesystem.make_dir(folder)


def _restore_hidden(paths: StorePaths, *, durable: bool) -> None:
    """Make again what is missing of the hidden folder: somebody removed it, or a copy left out empty folders."""
    if not paths.stale.exists():
        # Without the markers of superseded rows the packed table cannot be trusted.
        for folder in (paths.hidden, paths.trash):
            _make_missing(folder)
        filesystem.discard(paths.packed, paths.trash)
        if durable:
            filesystem.sync_dir(paths.root)
    _make_hidden(paths)
    area = StagingArea(paths.staging)
    try:
        _put(area, hidden_document(), paths.hidden, durable=durable)
    finally:
        area.close()
    if durable:
        filesystem.sync_dir(paths.hidden)
        filesystem.sync_dir(paths.root)
