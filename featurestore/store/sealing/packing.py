"""Packing the table, and with it sealing and unsealing, which need its lock."""

from __future__ import annotations

import os

from featurestore.errors import TrackLockedError
from featurestore.store.commit.locks import exclusive
from featurestore.store.commit.session import WriterSession
from featurestore.store.sealing.seal import Sealing
from featurestore.store.sealing.unseal import Unsealing
from featurestore.store.sealing.wear import LEAST_TRACKS, dead_bundles, remove_dead_bundles
from featurestore.store.table.index import TrackIndex
from featurestore.store.table.packing import pack


def pack_and_seal(
    index: TrackIndex,
    session: WriterSession,
    *,
    wait: float,
    thorough: bool,
    seal: bool | None,
    above: int,
) -> bool:
    """Pack, and seal or unseal all tracks: `StoreWriter.pack` says more."""
    reader, locked = index.reader, list[str]()
    lock = reader.paths.locks / "pack.lock"
    least = LEAST_TRACKS if above else 1
    if seal and above and len(os.listdir(reader.paths.kind("aggregated"))) - 1 <= above:
        seal = None

    if dead_bundles(reader.sealed):
        with exclusive(lock, timeout=wait) as held:
            if held:
                remove_dead_bundles(reader.paths, reader.sealed)
    if not pack(index, session, wait=wait, thorough=thorough):
        return False
    if seal is None:
        return True
    with exclusive(lock, timeout=wait) as held:
        if held and seal:
            Sealing(reader, session).run(index.snapshot().track_ids, least=least)
        elif held:
            locked = Unsealing(reader, session).run()
    # No track has come or gone, which the table does not know yet.
    if not (held and pack(index, session, wait=wait, thorough=False)):
        return False
    if locked:
        raise TrackLockedError(
            f"{len(locked)} tracks of the store {reader.paths.name} stay in bundles, as they are damaged or other "
            f"writers are at work on them ({locked[0]!r:.200}, ...): `verify --deep` tells which; unseal again"
        )
    return True
