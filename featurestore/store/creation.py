"""Making a new store, and opening one for writing."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

from featurestore.errors import NotAStoreError, SpecMismatchError
from featurestore.spec import KINDS, FeatureSpec
from featurestore.store import files, layout
from featurestore.store.layout import HIDDEN_DIRS, METADATA, Places


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
    if not os.path.lexists(root) or (root.is_dir() and not any(root.iterdir())):
        _create(root, spec, durable=durable)
    stored = layout.read_root(root)
    if differences := stored.differences(spec):
        listed = "; ".join(f"{key} is {old!r}, not {new!r}" for key, (old, new) in differences.items())
        raise SpecMismatchError(
            f"the store {name} holds features of other settings ({listed}): use its settings, or another store",
            differences=differences,
        )
    if not (places.hidden / METADATA).exists():
        # Without the marks of superseded rows the packed table cannot be trusted.
        files.remove_tree(places.packed)
        places.hidden.mkdir(exist_ok=True)
        for folder in HIDDEN_DIRS:
            (places.hidden / folder).mkdir(exist_ok=True)
        files.write_file(places.hidden / METADATA, layout.encode(layout.hidden_document()))


def _create(root: Path, spec: FeatureSpec, *, durable: bool) -> None:
    """Make an empty store beside its place and rename it there; if another is faster, theirs stays."""
    root.parent.mkdir(parents=True, exist_ok=True)
    new = Places(root.parent / f".{root.name[:100]}.{uuid.uuid4().hex[:12]}")
    try:
        files.make_dir(new.root)
        files.write_file(new.root / METADATA, layout.encode(layout.root_document(spec)))
        for kind in KINDS:
            files.make_dir(new.kind(kind))
            files.write_file(new.kind(kind) / METADATA, layout.encode(layout.group_document({})))
        files.make_dir(new.hidden)
        files.write_file(new.hidden / METADATA, layout.encode(layout.hidden_document()))
        for folder in HIDDEN_DIRS:
            files.make_dir(new.hidden / folder)
        if durable:
            files.sync_tree(new.root)
        files.rename(new.root, root)
        if durable:
            files.sync_dir(root.parent)
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise NotAStoreError(f"{root} is a file, not a store") from None
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        files.remove_tree(new.root)
