"""Wear: bundles of which nothing is there any more, or little, or that were small from the beginning."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from featurestore.store.bundles.bundle import Bundle
from featurestore.store.bundles.sealed import SealedTracks
from featurestore.store.commit.sealed import forget_marks, remove_bundle
from featurestore.store.paths import StorePaths

LEAST_TRACKS = 1024
"""A bundle of so many tracks that has `MOST_BYTES` takes no more; one of fewer is small."""
MOST_BYTES = 16 * 2**30


def dead_bundles(sealed: SealedTracks) -> list[str]:
    """Names of the bundles of which no track is there any more, and of those of which only marks are left."""
    if not sealed.names():
        return []
    removed = sealed.removed_rows()
    found = [x.name for x in sealed.bundles(if_known=True) if len(_hidden(x, removed)) == x.sizes.tracks]
    return found + sorted(removed.keys() - sealed.names())


def remove_dead_bundles(paths: StorePaths, sealed: SealedTracks) -> None:
    """Remove them; the caller holds `pack.lock`."""
    for name in dead_bundles(sealed):
        if name in sealed.names():
            remove_bundle(paths, name)
        else:
            forget_marks(paths, name)


def worn_bundles(sealed: SealedTracks) -> list[Bundle]:
    """Bundles of which more than half is hidden, by bytes."""
    removed, worn = sealed.removed_rows(), []
    for bundle in sealed.bundles():
        rows = np.diff(bundle.splits) + 1
        if 2 * rows[_hidden(bundle, removed)].sum() > rows.sum():
            worn.append(bundle)
    return worn


def small_bundles(sealed: SealedTracks, waiting: int, least: int) -> list[Bundle]:
    """Small bundles that are to become one with so many tracks that wait; none if these are fewer than `least`.

    Each has at most as many tracks as there are then already. So a track is written anew some ten times at most
    until it is in a bundle that is not small, and there are never more than some ten small ones.
    """
    removed, chosen = sealed.removed_rows(), list[Bundle]()
    counts = {bundle: bundle.sizes.tracks - len(_hidden(bundle, removed)) for bundle in sealed.bundles()}
    for bundle, tracks in sorted(counts.items(), key=lambda item: item[1]):
        if tracks >= LEAST_TRACKS or tracks > waiting:
            break
        chosen.append(bundle)
        waiting += tracks
    return chosen if waiting >= least else []


def _hidden(bundle: Bundle, removed: dict[str, set[int]]) -> list[int]:
    """Numbers of the tracks of a bundle that are not there any more."""
    rows: Collection[int] = removed.get(bundle.name, ())
    return sorted(row for row in rows if row < bundle.sizes.tracks)
