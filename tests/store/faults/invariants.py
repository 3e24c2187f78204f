"""What must hold of a store whatever happened to its writer."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.errors import CorruptTrackError, NotAStoreError, TrackNotFoundError
from featurestore.spec import KINDS
from featurestore.store.commit.record import TransactionRecord
from featurestore.store.paths import StorePaths
from featurestore.store.store import StoreReader as FeatureStore

from .alike import likeness
from .conditions import STORE, State, Track, writer
from .scenarios import Operation


class ViolationError(AssertionError):
    """Something that must hold does not."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise ViolationError(what)


def observe(store: FeatureStore) -> State:
    """The arrays of each track that a reader sees, after checking that all ways to see them agree."""
    names = store.track_ids
    require(len(store) == len(names) == len(set(names)), f"tracks occur twice: {names}")
    require(all(_is_there(store, name) for name in names), f"not all of {names} are in the store")
    seen: dict[str, Track | None] = {}
    for name in names:
        try:
            seen[name] = _arrays(store, name)
        except CorruptTrackError:
            seen[name] = None
    sound = {name: arrays for name, arrays in seen.items() if arrays is not None}
    rows = b"".join(arrays["aggregated"].tobytes() for arrays in sound.values())
    chosen = None if len(sound) == len(names) else list(sound)
    require(_bytes(store.aggregated(tracks=chosen)) == rows, "the rows of all tracks are not those of each")
    ragged = [name for name, arrays in sound.items() if "segments" in arrays]
    rows = b"".join(arrays["segments"].tobytes() for arrays in sound.values() if "segments" in arrays)
    if ragged:
        require(_bytes(store.segments(tracks=ragged)) == rows, "the segments of all tracks are not those of each")
    return seen


def _is_there(store: FeatureStore, name: str) -> bool:
    try:
        return name in store
    except CorruptTrackError:  # it may be in a bundle that is damaged
        return True


def _bytes(view: object) -> bytes:
    return np.asarray(view).tobytes()


def _arrays(store: FeatureStore, name: str) -> Track:
    kinds = store.provenance(name)["kinds"]
    require(store.has(name, kinds), f"{name} lacks what it says it has")
    arrays = {"aggregated": np.asarray(store.aggregated(tracks=[name]))[0]}
    for kind, view in (("segments", store.segments), ("raw", store.raw)):
        try:
            arrays[kind] = np.asarray(view(name))
        except TrackNotFoundError:
            require(kind not in kinds, f"{name} lacks {kind}")
    require(arrays.keys() == set(kinds), f"{name} has {list(arrays)}, and says {kinds}")
    return arrays


def same(one: Track | None, other: Track | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(
        one[kind].shape == other[kind].shape and one[kind].tobytes() == other[kind].tobytes() for kind in one
    )


def glance(store: FeatureStore, known: State, changing: set[str]) -> State:
    """What a reader sees, looking again only at the tracks that change and at the rows of all."""
    seen = {name: known.get(name) for name in store.track_ids}
    for name in changing & seen.keys():
        seen[name] = _arrays(store, name)
    rows = b"".join(arrays["aggregated"].tobytes() for arrays in seen.values() if arrays is not None)
    if None not in seen.values():
        require(_bytes(store.aggregated()) == rows, "the rows of all tracks are not those of each")
    return seen


_ABSENT = {"absent": np.zeros(0, np.float32)}


def progress(seen: State, before: State, after: State) -> dict[str, bool]:
    """For each track that changes, whether the change is seen; a violation if it is seen in part."""
    done = {}
    for name in {**before, **after, **seen}:
        found = seen.get(name, _ABSENT)
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        is_old, is_new = same(found, old), same(found, new)
        require(is_old or is_new, f"{name} is neither what it was nor what it becomes")
        if is_old != is_new:
            done[name] = is_new
    return done


def around_any(seen: State, states: Sequence[State]) -> None:
    """What is seen lies between two of the states that follow each other."""
    told = []
    for before, after in itertools.pairwise(states):
        try:
            progress(seen, before, after)
            return
        except ViolationError as violation:
            told.append(str(violation))
    raise ViolationError("; ".join(told))


def check(
    folder: Path,
    operation: Operation,
    before: State | None,
    after: State,
    *,
    seen: dict[str, State],
    held: FeatureStore | None = None,
) -> None:
    """All that must hold of a store that was interrupted between two states.

    Readers see whole tracks; the next writer repairs; the operation can be done again.

    Parameters
    ----------
    seen : dict
        What readers see in stores that were checked before, by their likeness: those that are alike are not
        checked twice.
    held : FeatureStore, optional
        A reader that looked at the store before.
    """
    like = f"{likeness(folder, folder / STORE)} {id(before)} {id(after)}"
    if like in seen:
        return
    start = before or {}
    seen[like] = {}
    changing = {
        name for name in {**start, **after} if not same(start.get(name, _ABSENT), after.get(name, _ABSENT))
    }
    if operation.keeps is not None:
        kind, name = operation.keeps.split("/")
        paths = StorePaths(folder / STORE)
        copies = [*paths.kind(kind).glob(f"subject/{name}"), *paths.hidden.glob(f"*/subject.*/{kind}/{name}")]
        require(len(copies) == 1, f"{operation.keeps} is gone")
    with operation.conditions():
        try:
            first = progress(observe(FeatureStore(folder / STORE)), start, after)
        except NotAStoreError:
            require(before is None, "the store is gone")
            first = {}
        in_place(folder)
        if held is not None:
            later = observe(held) if operation.damaged else glance(held, start, changing)
            require(progress(later, start, after) == first, "an older reader sees something else")
        with writer(folder):
            pass
        repaired = likeness(folder, folder / STORE)
        if is_new := repaired not in seen:
            store = FeatureStore(folder / STORE)
            seen[repaired] = observe(store)
        now = progress(seen[repaired], start, after)
        lost = [name for name, done in first.items() if done and not now[name]]
        require(not lost, f"a change that was seen is undone by the next writer: {lost}")
        if is_new:
            _do_again(folder, operation, store)


def _do_again(folder: Path, operation: Operation, store: FeatureStore) -> None:
    """A store that was repaired is sound, and the operation can be done again, as who has it open sees."""
    if not operation.damaged:
        sound(folder)
    *_, final = operation.run(folder)
    progress(observe(store), final, final)
    sound(folder)
    if operation.packs:
        info = store.info()
        require(info["packed"] == info["tracks"], f"{info['packed']} of {info['tracks']} tracks are packed")


def in_place(folder: Path) -> None:
    """What plain Zarr readers rely on: where `aggregated` is, the whole track is in its place.

    Only while a revision is being replaced they may see arrays of its successor beside it.
    """
    paths = StorePaths(folder / STORE)
    for key in os.listdir(paths.kind("aggregated")) if paths.kind("aggregated").exists() else ():
        own = _attributes(paths.array("aggregated", key))
        kinds = own.get("kinds", [])
        whole = all(_attributes(paths.array(kind, key)).get("revision") == own["revision"] for kind in kinds)
        intent = TransactionRecord.read(paths.journal / key)
        successor = intent is not None and intent.kinds and intent.revision != own.get("revision")
        require(whole or bool(successor), f"the {kinds} of {key} are not all in their place")


def _attributes(array: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((array / "zarr.json").read_text())["attributes"])
    except (FileNotFoundError, NotADirectoryError):
        return {}


def sound(folder: Path) -> None:
    """Nothing is wrong with a store, and nothing is left of what writers did."""
    report = FeatureStore(folder / STORE).verify(deep=True)
    require(report.ok and not report.unfinished, f"the check finds {report.problems}")
    left = list(leftovers(folder))
    require(not left, f"left behind: {left}")


def leftovers(folder: Path) -> Iterator[str]:
    paths = StorePaths(folder / STORE)
    if not paths.root.exists():
        return
    for place in (paths.staging, paths.journal, paths.trash):
        if place.exists():
            for name in os.listdir(place):
                yield f"{place.name}/{name}"
    if paths.sealing.exists():
        yield from (f"sealing/{name}" for name in os.listdir(paths.sealing))
    yield from set(os.listdir(paths.root)) - {"zarr.json", ".featurestore", "packed", "bundles", *KINDS}
