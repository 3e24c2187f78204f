"""Where everything is in a store."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from featurestore.addresses import StoreUrl, local_path, store_url
from featurestore.errors import NotAStoreError
from featurestore.spec import KINDS
from featurestore.store import reading
from featurestore.store.byte_source import LocalFolder

HIDDEN = ".featurestore"
HIDDEN_DIRS = ("locks", "staging", "journal", "stale", "trash")
QUARANTINE = "quarantine"
BUNDLES = "bundles"
REMOVED = "removed"


def resolve_store_path(path: str | os.PathLike[str]) -> Path:
    """The path of a store as it was given, with ``~`` and ``file://`` understood.

    Raises
    ------
    NotAStoreError
        If it is empty, which would be the current folder, or the address of something that is no folder.
    """
    found = resolve_address(path)
    if isinstance(found, StoreUrl):
        raise NotAStoreError(
            f"the store {found} is not in a folder, where stores are written: build it in one, and then "
            f"`fs-extract push FOLDER {found}`"
        )
    return found


def resolve_address(path: str | os.PathLike[str]) -> Path | StoreUrl:
    """The same for a store that is only read: the address of one in a bucket, or on a web server, is one, too."""
    if not os.fspath(path):
        raise NotAStoreError("the path of the store is empty: name its folder")
    try:
        return store_url(path) or Path(local_path(path))
    except ValueError as error:
        raise NotAStoreError(f"the store {_shown(path)} is {error}") from None


def _shown(path: str | os.PathLike[str]) -> str:
    """A path or address without what may be secret in it."""
    return re.sub(r"(?<=://)[^/]*@|[?#].*", "", os.fspath(path)) if "://" in os.fspath(path) else os.fspath(path)


class StorePaths:
    """The paths of a store: where it really is, without links, and the absolute path by which messages call it.

    Files that are links are read if `follow_links`.
    """

    def __init__(self, root: Path, follow_links: bool = False, given: Path | None = None) -> None:
        self.root, self.follow_links, self.name = root, follow_links, given or root
        self.packed, self.hidden = root / "packed", root / HIDDEN
        self.locks, self.staging, self.journal, self.stale, self.trash = (self.hidden / x for x in HIDDEN_DIRS)
        self.changes, self.runs, self.dead = self.hidden / "changes", self.hidden / "runs", self.hidden / "dead"
        self.bundles, self.sealing = root / BUNDLES, self.hidden / "sealing"
        self.removed = self.bundles / REMOVED

    @classmethod
    def of(cls, path: Path, *, follow_links: bool = False) -> StorePaths:
        """Those of a store at a path, which may be relative, a link or below one."""
        try:
            return cls(Path(os.path.realpath(path)), follow_links, Path(os.path.abspath(path)))
        except ValueError as error:
            raise NotAStoreError(f"{str(path)!r} is no path of a store: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Behind one path there may be another real path wherever this is unpickled.
        return partial(StorePaths.of, follow_links=self.follow_links), (self.name,)

    def open(self, *parts: str) -> LocalFolder:
        """Open the store's folder, or one below it, following no link there; the caller closes it."""
        root = LocalFolder(reading.open_root(self.root, follow_links=self.follow_links))
        if not parts:
            return root
        with root:
            return root.folder(*parts)

    def kind(self, kind: str) -> Path:
        return self.root / kind

    def array(self, kind: str, key: str) -> Path:
        return self.root / kind / key


def missing_directories(paths: StorePaths) -> list[str]:
    """Folders of writers that are missing: many ways to copy a store leave out those that are empty."""
    return [name for name in HIDDEN_DIRS if not os.path.lexists(paths.hidden / name)]


def invalid_paths(paths: StorePaths) -> list[Path]:
    """What is a link or a file where a store has a folder: it might lead anywhere."""
    folders = [paths.hidden, paths.packed, paths.bundles, *map(paths.kind, KINDS)]
    if reading.is_dir(paths.hidden):
        folders += [paths.hidden / name for name in (*HIDDEN_DIRS, QUARANTINE, "runs", "dead", "sealing")]
    if reading.is_dir(paths.bundles):
        folders.append(paths.removed)
    return [folder for folder in folders if os.path.lexists(folder) and not reading.is_dir(folder)]
