"""Making a new store, and opening one for writing."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from featurestore.errors import NotAStoreError, SpecMismatchError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store import filesystem
from featurestore.store.commit.staging import StagingArea, claiming
from featurestore.store.format.metadata import (
    METADATA,
    encode_document,
    group_document,
    hidden_document,
    read_root,
    root_document,
)
from featurestore.store.paths import HIDDEN_DIRS, Places, lost_folders, strange_folders


def create_or_check(places: Places, spec: FeatureSpec, name: Path, *, durable: bool) -> None:
    """Make sure that there is a store of this spec, ready for writers.

    Raises
    ------
    NotAStoreError
        If the path holds something else.
    StoreVersionError
        If the store was written by a newer release.
    SpecMismatchError
        If the store holds features of other settings.
    """
    root = places.root
    if is_vacant(root):
        _create(root, spec, durable=durable)
    stored = read_root(root)
    if differences := stored.differences(spec):
        listed = "; ".join(f"`{key}` is {old!r}, not {new!r}" for key, (old, new) in differences.items())
        raise SpecMismatchError(
            f"the store {name} holds features of other settings ({listed}): use its settings, or another store",
            differences=differences,
        )
    for folder in strange_folders(places):
        raise NotAStoreError(
            f"{folder} is a link or a file where a store has a folder: nothing is written before it is moved away"
        )
    if lost_folders(places) or not (places.hidden / METADATA).exists():
        _restore_hidden(places, durable=durable)
    if durable:
        # Whoever made the store may not have lived to do it.
        filesystem.sync_parent(root)


def is_vacant(path: Path) -> bool:
    """Whether there is nothing at a path, or an empty folder, so that a store can be made.

    Raises
    ------
    NotAStoreError
        If it is vacant and no store may be made there: in the current folder itself, or inside a store.
    """
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        return False
    root = Places.of(path).root
    with contextlib.suppress(OSError):
        if os.path.samefile(root, os.curdir):
            # The new store comes to its place as a whole, and takes the place of the folder.
            raise NotAStoreError(f"{root} is the current folder: name a new folder in it, or begin from elsewhere")
    for parent in root.parents:
        if (parent / METADATA).exists():
            try:
                read_root(parent)
            except NotAStoreError:
                continue  # a group of somebody else's
            raise NotAStoreError(f"{root} is inside the store {parent}: name a folder beside it")
    return True


def _create(root: Path, spec: FeatureSpec, *, durable: bool) -> None:
    """Make an empty store beside its place and rename it there; if another is faster, theirs stays."""
    filesystem.make_parents(root.parent, durable=durable)
    with _beside(root) as new:
        filesystem.write_file(new.root / METADATA, encode_document(root_document(spec)))
        for kind in KINDS:
            filesystem.make_dir(new.kind(kind))
            filesystem.write_file(new.kind(kind) / METADATA, encode_document(group_document({})))
        _make_hidden(new)
        if durable:
            filesystem.sync_tree(new.root)
        _put(new.root, root)


def _put(source: Path, target: Path) -> None:
    """Rename, unless another writer was faster."""
    try:
        filesystem.rename(source, target)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise NotAStoreError(f"{target} is a file, not a folder of a store") from None
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _make_hidden(places: Places) -> None:
    filesystem.make_dir(places.hidden)
    for folder in HIDDEN_DIRS:
        filesystem.make_dir(places.hidden / folder)
    filesystem.write_file(places.hidden / METADATA, encode_document(hidden_document()))


def _restore_hidden(places: Places, *, durable: bool) -> None:
    """Make again what is missing of the hidden folder: somebody removed it, or a copy left out empty folders."""
    with _beside(places.root) as new:
        if not places.stale.exists():
            # Without the marks of superseded rows the packed table cannot be trusted.
            filesystem.discard(places.packed, new.root)
            if durable:
                filesystem.sync_dir(places.root)
        _make_hidden(new)
        if durable:
            filesystem.sync_tree(new.hidden)
        filesystem.make_parents(places.hidden, durable=durable)
        for name in (*HIDDEN_DIRS, METADATA):
            if not (places.hidden / name).exists():
                _put(new.hidden / name, places.hidden / name)
            if durable:
                filesystem.sync_dir(places.hidden)


@contextlib.contextmanager
def _beside(root: Path) -> Iterator[Places]:
    """A new folder beside a store, gone at the end with what was not put somewhere else."""
    root = root.resolve()
    prefix = f".{root.name[:100]}.making-"
    for left in root.parent.glob(f"{glob.escape(prefix)}*"):
        with claiming(left, prefix) as claimed:
            if claimed:
                filesystem.remove_tree(left)
    area = StagingArea(root.parent, prefix)
    try:
        yield Places(area.folder())
    finally:
        area.close()
