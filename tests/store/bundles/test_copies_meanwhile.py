"""Copies, file by file, of a store in which tracks are sealed meanwhile: what they lack is named by `verify`."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from samples import SPEC, features, read_all, write_store

from featurestore import FeatureStore, StoreWriter
from featurestore.errors import StoreError

pytestmark = pytest.mark.slow

TRACKS = {
    "a": features(0),
    "b": features(1, kinds=("segments", "aggregated")),
    "c": features(2, kinds=("aggregated",)),
    "d": features(3, segments=3, kinds=("segments", "aggregated")),
}
NEW = features(9, segments=4)


def opened(path):
    return StoreWriter(path, spec=SPEC, durable=False, overwrite=True)


def seal(path):
    with opened(path) as writer:
        writer.pack(seal=True)


def unseal(path):
    with opened(path) as writer:
        writer.pack(seal=False)


def seal_what_is_new(path):
    with opened(path) as writer:
        writer.put("a", NEW)
        writer.pack(seal=True)


CHANGES = {
    "sealed": (lambda path: None, seal),
    "unsealed": (seal, unseal),
    "overwritten and sealed": (seal, seal_what_is_new),
}


def copying(source: Path, target: Path, *, backwards: bool, deep: int = 2) -> Iterator[None]:
    """Copy as rsync does, by names, or in the opposite order, as `cp -r` may; stops when a folder is listed."""
    target.mkdir()
    names = sorted(os.listdir(source), reverse=backwards)
    if deep:
        yield
    for name in names:
        if (source / name).is_dir():
            yield from copying(source / name, target / name, backwards=backwards, deep=max(0, deep - 1))
        elif (source / name).exists():  # else it is gone, and the copy says so
            shutil.copy2(source / name, target / name)


@pytest.mark.parametrize("backwards", [False, True], ids=["by names", "backwards"])
@pytest.mark.parametrize("change", CHANGES)
def test_packed_tracks_that_a_copy_lacks_are_named_by_verify(tmp_path, change, backwards):
    before, meanwhile = CHANGES[change]
    lacking, step, moment = set(), 0, 0
    while step >= moment:
        source, target = tmp_path / f"{moment}.zarr", tmp_path / f"{moment}.copy.zarr"
        write_store(source, TRACKS, pack=True)
        before(source)
        for step, _ in enumerate(copying(source, target, backwards=backwards)):
            if step == moment:
                meanwhile(source)
        found = FeatureStore(target)
        report = found.verify()
        named = {problem.track_id for problem in report.problems}
        if not any(problem.what == "bundle" for problem in report.problems):  # which is named
            bad = {name for name, arrays in TRACKS.items() if not is_whole(found, name, arrays)}
            assert bad <= named
            lacking |= bad
        moment += 1
    assert lacking


def is_whole(store, name, arrays):
    """Whether a track is there, as it was or as it has become."""
    try:
        found = read_all(store, name) if name in store else {}
    except StoreError:
        return False
    states = [arrays, *([NEW] if name == "a" else [])]
    return any(
        found.keys() == state.keys() and all(np.array_equal(found[kind], state[kind]) for kind in state)
        for state in states
    )
