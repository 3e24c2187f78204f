"""The lock that keeps a bundle from being put in its place while tracks are removed.

Whoever removes a track has `seal.lock` together with others who remove; whoever seals has it alone, for the moment
in which a bundle is put in its place: two listings and two syncs. It waits for removals that have begun, some
renames and syncs each. So that it does not wait for others that come all the time, it holds `seal.next` meanwhile,
where these wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from featurestore.errors import TrackLockedError
from featurestore.store import reading
from featurestore.store.commit.locks import exclusive, held_by, way_out
from featurestore.store.paths import StorePaths

PATIENCE = 60.0
"""Seconds: of whoever removes; who seals waits for half as long, so that others who wait for it do not give up."""


@contextlib.contextmanager
def removing(paths: StorePaths) -> Iterator[None]:
    """Remove tracks from folders: none gets into a bundle meanwhile.

    Raises
    ------
    TrackLockedError
        If a bundle has been put in its place all the time.
    """
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as turn:
            if reading.list_names(paths.sealing):  # of others, or of a dead writer
                _enter(turn, paths, "seal.next", PATIENCE, shared=True)
            _enter(held, paths, "seal.lock", PATIENCE, shared=True)
        yield


@contextlib.contextmanager
def placing(paths: StorePaths) -> Iterator[None]:
    """Put a bundle in its place, of which there is a file in `sealing`: no track is removed meanwhile.

    Raises
    ------
    TrackLockedError
        If others have been removing tracks all the time.
    """
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as turn:
            _enter(turn, paths, "seal.next", PATIENCE / 2, shared=False)
            _enter(held, paths, "seal.lock", PATIENCE / 2, shared=False)
        yield


def _enter(stack: contextlib.ExitStack, paths: StorePaths, name: str, wait: float, *, shared: bool) -> None:
    if not stack.enter_context(exclusive(paths.locks / name, timeout=wait, shared=shared)):
        path = paths.locks / name
        what = f"putting a bundle in its place ({held_by(path)})" if shared else "removing a track"
        raise TrackLockedError(
            f"store {paths.name}: another writer has been {what} for {wait:.0f} s, which takes a moment only: "
            f"{way_out(path)}"
        )
