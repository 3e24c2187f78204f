"""The root of a store: what the store says of itself, its version, and whether one that is open is still there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from featurestore.addresses import StoreUrl
from featurestore.errors import CorruptTrackError, NotAStoreError, StoreAccessError, StoreVersionError
from featurestore.spec import FeatureSpec
from featurestore.spelling import close_hint
from featurestore.store import filesystem, reading
from featurestore.store.format.metadata import (
    MAX_METADATA_BYTES,
    METADATA,
    SEALED_VERSION,
    checksum,
    decode_document,
    encode_document,
)
from featurestore.store.paths import StorePaths


class Root(NamedTuple):
    """What a store says of itself."""

    format: int
    spec: FeatureSpec


def read_root(paths: StorePaths) -> Root:
    """What a store says of itself.

    Raises
    ------
    NotAStoreError
        If there is none.
    StoreVersionError
        If it was written by a newer release.
    CorruptTrackError
        If its root metadata is damaged.
    """
    root = paths.root
    try:
        with paths.open() as folder:
            content = folder.read(METADATA, MAX_METADATA_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        what = "holds no feature store" if root.is_dir() else "is a file" if root.exists() else "does not exist"
        hint = close_hint(root) if what == "does not exist" else ""
        raise NotAStoreError(
            f"{root} {what}{hint}: give the folder of a store, or build one in a new place"
        ) from None
    except ValueError as error:
        if (root / METADATA).is_symlink():
            raise NotAStoreError(
                f"{root}: {METADATA} is a link, as in the hub's cache, DVC or git-annex. To read such a store, "
                "say that its links may be followed: `follow_links=True`. To "
                f"write it, copy it first, with what the links lead to: cp -rL {root} COPY"
            ) from None
        raise NotAStoreError(f"{root} holds no feature store: {error}") from None
    return decode_root(content, root)


def decode_root(content: bytes, root: Path | StoreUrl) -> Root:
    """What a store says of itself whose root metadata this is; raises as `read_root`."""
    try:
        own = decode_document(content)["attributes"]["featurestore"]
        version = own["format"]
    except (ValueError, KeyError, TypeError):
        raise NotAStoreError(
            f"{root} holds no feature store: {METADATA} there is not one of this library"
        ) from None
    if type(version) is not int or version > SEALED_VERSION:
        raise StoreVersionError(
            f"{root} has the store format {version!r}, this release knows {SEALED_VERSION}: upgrade featurestore"
        )
    try:
        spec = FeatureSpec.from_dict(own["spec"])
        if spec.fingerprint != own["fingerprint"] or version < 1:
            raise ValueError("the spec does not match its fingerprint")
        if checksum({name: value for name, value in own.items() if name != "checksum"}) != own["checksum"]:
            raise ValueError("it fails its checksum")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptTrackError(
            f"{root}: the root metadata is damaged: {error}; bring back its {METADATA} from a copy"
        ) from None
    return Root(version, spec)


def upgrade_root(paths: StorePaths, staged: Path, version: int) -> None:
    """Let releases that know no such version refuse the store; `staged` is a folder for the new metadata."""
    document = decode_document(reading.read_file(paths.root / METADATA, limit=MAX_METADATA_BYTES))
    before = document["attributes"]["featurestore"]
    if before["format"] >= version:
        return
    own = {**{name: value for name, value in before.items() if name != "checksum"}, "format": version}
    document["attributes"]["featurestore"] = {**own, "checksum": checksum(own)}
    filesystem.replace_file(paths.root / METADATA, encode_document(document), staged / METADATA)


class RootCheck:
    """Notice that a store is gone, or that another was put in its place. A look costs one system call."""

    def __init__(self, paths: StorePaths, spec: FeatureSpec) -> None:
        self._paths = paths
        self._spec = spec
        self._seen: tuple[int, ...] = ()

    def look(self) -> None:
        """Look at the root again, and read it if it has changed.

        Raises
        ------
        StoreAccessError
            If the store is gone, or one of other settings is in its place.
        """
        try:
            status = os.stat(self._paths.root / METADATA)
            seen = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
            if seen == self._seen:
                return
            fingerprint = read_root(self._paths).spec.fingerprint
        except CorruptTrackError:
            return  # or half written: it does not say that it is another
        except (FileNotFoundError, NotADirectoryError, NotAStoreError) as error:
            raise StoreAccessError(
                f"the store {self._paths.name} is gone since it was opened: mount it, or bring it back ({error})"
            ) from error
        if fingerprint != self._spec.fingerprint:
            raise StoreAccessError(
                f"the store {self._paths.name} has been replaced by one of other settings: open it again"
            )
        self._seen = seen
