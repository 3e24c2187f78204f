"""Whether a store that is open is still the one that is there."""

from __future__ import annotations

import os

from featurestore.errors import CorruptTrackError, NotAStoreError, StoreAccessError
from featurestore.spec import FeatureSpec
from featurestore.store.format.metadata import METADATA, read_root
from featurestore.store.paths import StorePaths


class RootCheck:
    """Notice that a store is gone, or that another was put in its place. A look costs one system call.

    Parameters
    ----------
    paths : StorePaths
        Of the store.
    spec : FeatureSpec
        With which it was opened.
    """

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
            fingerprint = read_root(self._paths.root, follow_links=self._paths.follow_links).fingerprint
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
