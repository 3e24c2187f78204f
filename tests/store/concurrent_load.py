"""Writers and readers of one store at the same time: what each may see, and what it saw.

Every number of a track tells the track and the revision: raw, segments and aggregated are 100,000 times the
number of the track plus the revision, so that anything torn or mixed shows. Run by itself
(`python tests/store/concurrent_load.py STORE`), it prints what each kind of reader saw.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import TrackLockedError
from featurestore.store import filesystem
from featurestore.store.sealing import seal
from featurestore.store.table import index

SPEC = FeatureSpec.for_arrays(layers=3, dim=8)
TRACKS = 24  # that exist from the beginning
STEADY = TRACKS // 2  # whose number of segments never changes
FRAMES = 4
_STEP = 100_000
SECONDS = float(os.environ.get("FEATURESTORE_STRESS_SECONDS", "2"))

PACKAGES = {"read_with_zarr": ["zarr"], "read_with_xarray": ["xarray", "zarr", "dask.array"]}

Seen = Counter[str]


def track_id(number: int) -> str:
    return f"{number:05}"


def arrays(number: int, revision: int) -> dict[str, np.ndarray]:
    segments = 3 if number < STEADY else 1 + (number + revision) % 4
    value = np.float32(number * _STEP + revision)
    return {"raw": np.full((segments, len(SPEC.layers), FRAMES, SPEC.dim), value)}


def make(path: Path) -> None:
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for number in range(TRACKS):
            put(writer, number, 0)
        writer.pack()


def put(writer: StoreWriter, number: int, revision: int) -> None:
    given = arrays(number, revision)
    given["segments"] = given["raw"].mean(axis=2)
    with contextlib.suppress(TrackLockedError):
        writer.put(track_id(number), given, overwrite=True)


def whole(values: np.ndarray, number: int) -> bool:
    """Whether all values are of one revision of a track."""
    values = np.asarray(values)
    return bool(values.size and (values == values.flat[0]).all() and values.flat[0] // _STEP == number)


def run(
    path: Path, writers: list[Callable[..., None]], readers: list[Callable[..., Seen]], context: BaseContext
) -> list[Seen]:
    """What each reader saw while the writers worked, each in a process of its own."""
    stop, results = context.Event(), context.Queue()
    ready = context.Barrier(len(writers) + len(readers) + 1)
    processes = [
        context.Process(target=_guard, args=(work, path, ready, stop, results, i, i < len(writers)))
        for i, work in enumerate([*writers, *readers])
    ]
    for process in processes:
        process.start()
    ready.wait(120)
    time.sleep(SECONDS)
    stop.set()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    for i in range(len(writers)):
        assert not found[i], f"writer {i}: {found[i]}"
    return [found[i + len(writers)] for i in range(len(readers))]


class _Enough:
    """That the time is over, for a reader that has seen something."""

    def __init__(self, stop: Any, seen: Seen) -> None:
        self._stop, self._seen = stop, seen

    def is_set(self) -> bool:
        return bool(self._seen) and self._stop.is_set()


def _guard(work: Any, path: Path, ready: Any, stop: Any, results: Any, number: int, writes: bool) -> None:
    seen: Seen = Counter()
    random.seed(number)
    for package in PACKAGES.get(work.__name__, ()):
        importlib.import_module(package)
    enough = stop if writes else _Enough(stop, seen)
    ready.wait(120)
    try:
        while not enough.is_set():
            if writes:
                work(path, stop)
            else:
                work(path, enough, seen)
    except BaseException as error:
        seen[f"{type(error).__name__}: {error}"] += 1
    results.put((number, seen))


def overwrite(path: Path, stop: Any) -> None:
    """Replaces tracks, and packs now and then."""
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for revision in range(1, _STEP):
            for number in random.sample(range(TRACKS), 6):
                put(writer, number, revision)
                if stop.is_set():
                    return
            if revision % 3 == 0:
                writer.pack(wait=5)


def append(path: Path, stop: Any) -> None:
    """Adds tracks, and packs after each few."""
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        for number in range(TRACKS, _STEP):
            put(writer, number, 0)
            if number % 5 == 0:
                writer.pack(wait=5)
            if stop.is_set():
                return
            time.sleep(0.005)


def seal_and_unseal(path: Path, stop: Any) -> None:
    """Moves all tracks into bundles of five, and back."""
    seal.MOST_TRACKS = 5
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        while not stop.is_set():
            for back in (False, False, True):
                with contextlib.suppress(TrackLockedError):
                    writer.pack(wait=5, seal=not back)


def overwrite_by_renaming(path: Path, stop: Any) -> None:
    """As `overwrite`, on a system that cannot exchange two folders in one step."""
    filesystem.exchange = lambda one, other: False
    overwrite(path, stop)


def append_by_renaming(path: Path, stop: Any) -> None:
    """As `append`, on a system that cannot exchange two folders in one step."""
    filesystem.exchange = lambda one, other: False
    append(path, stop)


def read_anew(path: Path, stop: Any, seen: Seen) -> None:
    """Opens a store again and again, and reads everything of some tracks."""
    store = FeatureStore(path)
    number = random.randrange(TRACKS)
    check_track(store, number, seen)
    check_table(store, seen)


def read_held_of_many(path: Path, stop: Any, seen: Seen) -> None:
    """As `read_held`, in the way of a store of many tracks: they are not listed again while changes are logged."""
    index._MANY_TRACKS = 0
    read_held(path, stop, seen)


def read_held(path: Path, stop: Any, seen: Seen) -> None:
    """Holds a store and views of it."""
    store = FeatureStore(path)
    views = {n: (store.raw(track_id(n)), store.segments(track_id(n), layer=1)) for n in range(STEADY)}
    for raw, segments in views.values():
        assert raw.shape[0] == segments.shape[0]
    some = store.aggregated(tracks=[track_id(n) for n in range(TRACKS)])
    while not stop.is_set():
        number = random.randrange(TRACKS)
        check_track(store, number, seen)
        check_table(store, seen)
        for view in views[number % STEADY]:
            seen["ok" if whole(view, number % STEADY) else "torn view"] += 1
            seen["ok" if whole(view[1], number % STEADY) else "torn part of a view"] += 1
        rows = np.asarray(some)
        seen["ok" if all(whole(row, n) for n, row in enumerate(rows)) else "torn row"] += 1


def check_track(store: FeatureStore, number: int, seen: Seen) -> None:
    name = track_id(number)
    for view in (store.raw(name), store.segments(name), store.aggregated(tracks=[name])):
        seen["ok" if whole(view, number) else f"torn {view.dims}"] += 1
    assert store.has(name, kinds=("raw", "segments", "aggregated"))
    assert store.provenance(name)["track_id"] == name


def check_table(store: FeatureStore, seen: Seen) -> None:
    ids = store.track_ids
    seen["ok" if len(ids) >= TRACKS and len(set(ids)) == len(ids) else "tracks are missing"] += 1
    view = store.aggregated()
    rows = np.asarray(view)
    fine = all(whole(row, int(name)) for name, row in zip(view.track_ids, rows, strict=True))
    seen["ok" if fine else "torn row of all"] += 1
    ragged = store.segments(layer=2, tracks=[track_id(n) for n in range(TRACKS)])
    values = np.asarray(ragged)
    starts = np.flatnonzero(np.r_[True, ragged.row_tracks[1:] != ragged.row_tracks[:-1]])
    parts = np.split(values, starts[1:])
    seen["ok" if all(whole(part, n) for n, part in enumerate(parts)) else "torn segments"] += 1


def verify_meanwhile(path: Path, stop: Any, seen: Seen) -> None:
    report = FeatureStore(path).verify(deep=random.random() < 0.5)
    seen["ok" if report.ok else f"false alarm: {[p.message for p in report.problems]}"] += 1


# What other libraries see.


def read_with_zarr(path: Path, stop: Any, seen: Seen) -> None:
    """Reads one track with zarr-python, which opens metadata and numbers one after the other."""
    import zarr

    number = random.randrange(TRACKS)
    folder = path / random.choice(["raw", "segments", "aggregated"]) / track_id(number)
    try:
        array = zarr.open_array(folder, mode="r")
    except Exception as error:
        seen[f"not opened: {type(error).__name__}"] += 1
        return
    try:
        values = array[...]
    except Exception as error:
        seen[f"not read: {type(error).__name__}"] += 1
        return
    same = zarr.open_array(folder, mode="r").attrs["revision"] == array.attrs["revision"]
    when = "same revision before and after" if same else "another revision after"
    seen[f"{when}: {'whole' if whole(values, number) else 'torn'}"] += 1


def read_with_xarray(path: Path, stop: Any, seen: Seen) -> None:
    """Opens the packed table with xarray, holds it for a while and reads it again and again."""
    import xarray as xr

    def layout() -> int:
        return int(xr.open_zarr(path / "packed").attrs["layout"])

    dataset = xr.open_zarr(path / "packed")
    for _ in range(5):
        try:
            ids, rows = dataset.track_id.values, dataset.features.values
            fine = all(whole(row, int(name)) for name, row in zip(ids, rows, strict=True))
            how = "ok" if fine else "torn row"
        except Exception as error:
            if layout() - dataset.attrs["layout"] > 1:
                return  # until then it answers; from then on it answers right or fails
            how = f"{type(error).__name__}: {error}"
        seen[how] += 1


READERS = [read_anew, read_held, read_with_xarray, read_with_zarr]

if __name__ == "__main__":
    place = Path(sys.argv[1])
    make(place)
    spawn = multiprocessing.get_context("spawn")
    for reader, what in zip(READERS, run(place, [overwrite, append], READERS, spawn), strict=True):
        print(reader.__name__, dict(what))
    store = FeatureStore(place)
    print(store.info()["tracks"], "tracks", store.verify(deep=True).problems)
