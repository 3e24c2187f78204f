"""The store against plain .npy files: ratios in one run, interleaved, medians.

    python -m benchmarks.store [--folder DIR] [--tracks 10000 100000] [--repeats 5] [--only NAME ...] [--keep]

Every ratio is the store's time by the peer's (or, where it says "faster", the peer's by the store's). 100,000
tracks take 4 GB of disk; with --keep the next run finds what was written for queries in the folder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store.format.metadata import METADATA, encode_document, seal, shard_name, track_metadata
from featurestore.store.format.shards import ShardWriter

LAYERS, DIM, FRAMES = 13, 768, 374
ALL_DIFFERENT = 20_000  # tracks
SPEC = FeatureSpec.for_arrays(layers=LAYERS, dim=DIM)
RNG = np.random.default_rng(0)


def timed(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begun = clock()
    function()
    return clock() - begun


def interleaved(
    repeats: int, *functions: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Times of each function, taken in turns after one turn that does not count."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for own, function in zip(times, functions, strict=True):
            seconds = timed(function, clock)
            if turn:
                own.append(seconds)
    return times


def ratio(ours: list[float], peer: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def save(path: Path, array: np.ndarray, *, sync: bool) -> None:
    with path.open("wb") as file:
        np.save(file, array)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def raw_write(folder: Path, repeats: int) -> Iterator[tuple[str, float, str]]:
    raw = RNG.standard_normal((24, LAYERS, FRAMES, DIM), dtype=np.float32)
    pooled = raw.mean(axis=2)
    for sync, bar in ((False, "<= 1.3"), (True, "<= 3")):
        store = folder / "raw.zarr"

        def ours(sync: bool = sync, store: Path = store) -> None:
            with StoreWriter(store, spec=SPEC, durable=sync, overwrite=True) as writer, writer.track("t") as track:
                for first in range(0, len(raw), 4):
                    track.append(raw=raw[first : first + 4], segments=pooled[first : first + 4])

        def peer(sync: bool = sync) -> None:
            save(folder / "raw.npy", raw, sync=sync)

        own, other = [], []
        for turn in range(repeats + 1):
            shutil.rmtree(store, ignore_errors=True)
            (folder / "raw.npy").unlink(missing_ok=True)
            StoreWriter(store, spec=SPEC).close()
            a, b = timed(ours), timed(peer)
            if turn:
                own.append(a)
                other.append(b)
        name = "raw write fp32, streamed, " + ("with fsync" if sync else "without fsync")
        yield name, ratio(own, other), f"{bar} of np.save's time"
    shutil.rmtree(store)


def _peak(job: str, folder: Path) -> int:
    """Peak resident memory of a process that streams raw features, KiB above its start."""

    def work(queue: multiprocessing.Queue[int]) -> None:
        block = RNG.standard_normal((4, LAYERS, FRAMES, DIM), dtype=np.float32)
        pooled = block.mean(axis=2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if job == "store":
            with (
                StoreWriter(folder / "peak.zarr", spec=SPEC, overwrite=True) as writer,
                writer.track("t") as track,
            ):
                for _ in range(24):
                    track.append(raw=block, segments=pooled)
        else:
            with (folder / "peak.npy").open("wb") as file:
                for _ in range(24):
                    block.tofile(file)
        queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    peak = queue.get()
    process.join()
    return peak


def memory(folder: Path, repeats: int) -> Iterator[tuple[str, float, str]]:
    above = statistics.median(_peak("store", folder) - _peak("npy", folder) for _ in range(repeats)) / 1024
    yield "peak memory above streaming to .npy, MB", above, "<= 50"


def _forget(*paths: Path) -> None:
    """Drop files from the page cache."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def raw_read(folder: Path, repeats: int) -> Iterator[tuple[str, float, str]]:
    raw = RNG.standard_normal((96, LAYERS, FRAMES, DIM), dtype=np.float32)
    path = folder / "track.npy"
    np.save(path, raw)
    with StoreWriter(folder / "read.zarr", spec=SPEC) as writer:
        writer.put("t", {"raw": raw})
    del raw
    store = FeatureStore(folder / "read.zarr")
    shard = folder / "read.zarr/raw/t/c.0.0.0.0"

    def ours() -> np.ndarray:
        return store.raw("t", layer=7)[...]

    def mapped() -> np.ndarray:
        return np.ascontiguousarray(np.load(path, mmap_mode="r")[:, 7])

    def whole() -> np.ndarray:
        return np.load(path)[:, 7]

    assert np.array_equal(ours(), mapped())
    own, other, load = interleaved(repeats, ours, mapped, whole)
    yield "one layer of a raw track, warm", ratio(own, other), "<= 1.2 of an mmap's time"
    yield "  times faster than np.load", ratio(load, own), ">= 20"
    own, other = [], []
    for _ in range(repeats):
        _forget(path, shard)
        own.append(timed(ours))
        _forget(path, shard)
        other.append(timed(mapped))
    yield "one layer of a raw track, cold", ratio(own, other), "<= 0.4 of an mmap's time"
    path.unlink()
    shutil.rmtree(folder / "read.zarr")


def publish(folder: Path, repeats: int) -> Iterator[tuple[str, float, str]]:
    segments = RNG.standard_normal((24, LAYERS, DIM), dtype=np.float32)
    aggregated = segments.mean(axis=0)
    numbers = iter(range(10**6))
    with StoreWriter(folder / "publish.zarr", spec=SPEC) as writer:

        def ours() -> None:
            writer.put(f"t{next(numbers)}", {"segments": segments, "aggregated": aggregated})

        def peer() -> None:
            number = next(numbers)
            save(folder / f"s{number}.npy", segments, sync=True)
            save(folder / f"a{number}.npy", aggregated, sync=True)

        own, other = interleaved(max(40, repeats), ours, peer)
    files = sum(len(list(p.iterdir())) for p in (folder / "publish.zarr/segments").iterdir() if p.is_dir())
    tracks = len(FeatureStore(folder / "publish.zarr"))
    yield "publish segments + aggregated, with fsync", ratio(own, other), "<= 2 of two np.save + fsync"
    yield "files per track and kind", files / tracks, "2"


def _place(store: Path, track_id: str, values: np.ndarray) -> str:
    """A track with nothing but `aggregated`, as a writer leaves it, without the locks and steps of publishing."""
    folder = store / "aggregated" / track_id
    folder.mkdir()
    shard = ShardWriter(folder / shard_name(2), track_id, 4)
    shard.append(values[:, None])
    checksum = shard.finish()
    _describe(folder, track_id, checksum)
    return checksum


def _describe(folder: Path, track_id: str, checksum: str) -> None:
    attributes = {
        "track_id": track_id,
        "revision": "0" * 32,
        "fingerprint": SPEC.fingerprint,
        "kinds": ["aggregated"],
        "layers": list(SPEC.layers),
        "starts": [],
        "checksums": {"chunks": checksum},
    }
    document = track_metadata("aggregated", (LAYERS, DIM), SPEC, attributes).document()
    (folder / METADATA).write_bytes(encode_document(seal(document)))


def _write_twins(store: Path, twin: Path, tracks: int) -> None:
    """The same features in a store, not packed, and in .npy files.

    Beyond 20,000 tracks only 1,000 have numbers of their own and the others hard links to them. That saves minutes
    and gigabytes, and what is compared remains: a loop over .npy files is only quicker for it.
    """
    StoreWriter(store, spec=SPEC).close()
    twin.mkdir()
    row = RNG.standard_normal((LAYERS, DIM), dtype=np.float32)
    different = tracks if tracks <= ALL_DIFFERENT else 1_000
    shard = shard_name(2)
    checksums = []
    for number in range(tracks):
        name, like = f"t{number:06d}", f"t{number % different:06d}"
        if number < different:
            row[:, 0] = number
            np.save(twin / f"{name}.npy", row)
            checksums.append(_place(store, name, row))
        else:
            os.link(twin / f"{like}.npy", twin / f"{name}.npy")
            (store / "aggregated" / name).mkdir()
            os.link(store / "aggregated" / like / shard, store / "aggregated" / name / shard)
            _describe(store / "aggregated" / name, name, checksums[number % different])
    os.sync()


def queries(folder: Path, repeats: int, tracks: int, keep: bool) -> Iterator[tuple[str, float, str]]:
    store_path, twin = folder / f"{tracks}.zarr", folder / f"{tracks}.npy"
    if not (store_path / "packed").exists():
        _write_twins(store_path, twin, tracks)
    paths = sorted(twin.glob("*.npy"))

    def ours() -> np.ndarray:
        return np.asarray(FeatureStore(store_path).aggregated(layer=7))

    def loop() -> np.ndarray:
        return np.stack([np.load(path)[7] for path in paths])

    if not (store_path / "packed").exists():
        if tracks <= ALL_DIFFERENT:
            assert np.array_equal(ours(), loop())
            own, other = interleaved(repeats, ours, loop)
            yield f"aggregated(layer=7), {tracks} tracks, unpacked: times faster", ratio(other, own), ">= 8"
        FeatureStore(store_path).pack()
        os.sync()
    import xarray

    def through_xarray() -> np.ndarray:
        with xarray.open_zarr(store_path / "packed", chunks=None) as table:
            return table.features.sel(layer=7).to_numpy()

    assert np.array_equal(ours(), loop())
    assert np.array_equal(through_xarray(), loop())
    own, through, other = interleaved(repeats, ours, through_xarray, loop)
    yield f"aggregated(layer=7), {tracks} tracks: times faster", ratio(other, own), ">= 100"
    yield "  through xarray: times faster", ratio(other, through), ">= 40"

    def ids() -> int:
        store = FeatureStore(store_path)
        return len(store.track_ids)

    def glob() -> int:
        return len([path.stat() for path in twin.glob("*.npy")])

    assert ids() == glob() == tracks
    own, other = interleaved(repeats, ids, glob)
    yield f"open and list the ids of {tracks} tracks: times faster than glob and stat", ratio(other, own), ">= 50"
    if not keep:
        shutil.rmtree(store_path)
        shutil.rmtree(twin)


def _write_some(path: Path, first: int, count: int, queue: multiprocessing.Queue[tuple[float, float]]) -> None:
    """Put tracks; tell the seconds that it took, and those of them that were spent waiting for a lock."""
    segments = np.ones((24, LAYERS, DIM), np.float32)
    sleep, waited = time.sleep, []
    time.sleep = lambda seconds: waited.append(timed(lambda: sleep(seconds)))  # only locks wait like this
    with StoreWriter(path, spec=SPEC) as writer:
        begun = time.perf_counter()
        for number in range(first, first + count):
            writer.put(f"t{number}", {"segments": segments})
    queue.put((time.perf_counter() - begun, sum(waited)))


def writers(folder: Path, repeats: int) -> Iterator[tuple[str, float, str]]:
    context = multiprocessing.get_context("fork")
    tracks = 400
    shares: list[float] = []

    def run(count: int) -> None:
        path = folder / "writers.zarr"
        shutil.rmtree(path, ignore_errors=True)
        StoreWriter(path, spec=SPEC).close()
        queue: multiprocessing.Queue[tuple[float, float]] = context.Queue()
        share = tracks // count
        jobs = [context.Process(target=_write_some, args=(path, i * share, share, queue)) for i in range(count)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        assert len(FeatureStore(path)) == tracks
        took, waited = map(sum, zip(*(queue.get() for _ in jobs), strict=True))
        if count > 1:
            shares.append(100 * waited / took)

    own, other = interleaved(repeats, lambda: run(8), lambda: run(1))
    yield "8 writers to 1, the same tracks in all", ratio(own, other), "<= 1"
    yield "  lock waits, % of their time", statistics.median(shares), "< 1"


def _keep_writing(path: Path, spec: FeatureSpec, stop: Event) -> None:
    """Add a track 50 times a second, and remove them all in the end."""
    segments = np.ones((50, 2, 8), np.float32)
    added = 0
    with StoreWriter(path, spec=spec, durable=False) as writer:
        while not stop.wait(0.02):
            writer.put(f"live{added}", {"segments": segments})
            added += 1
        for number in range(added):
            writer.remove(f"live{number}")


def reading_while_writing(folder: Path, repeats: int) -> Iterator[tuple[str, float, str]]:
    """Queries of small tracks, so that what grows with their number shows; of two numbers of them."""
    spec = FeatureSpec.for_arrays(layers=2, dim=8)
    path = folder / "busy.zarr"
    for tracks in (1_200, 4_800):
        with StoreWriter(path, spec=spec, durable=False) as writer:
            for number in range(len(FeatureStore(path)), tracks):
                writer.put(f"a/{number:06d}", {"segments": np.full((50, 2, 8), number, np.float32)})
            writer.pack()
        yield from _reading(FeatureStore(path), repeats)
    shutil.rmtree(path)


def _reading(store: FeatureStore, repeats: int) -> Iterator[tuple[str, float, str]]:
    ids, rows = store.track_ids, store.segments(layer=1)
    yield f"the first shape of the segments of {len(ids)} tracks, ms", 1e3 * timed(lambda: rows.shape), "<= 10"
    numbers = iter(np.random.default_rng(0).integers(len(ids), size=10**6).tolist())
    queries: dict[str, Callable[[], object]] = {
        "len(store)": lambda: len(store),
        "one row of aggregated": lambda: store.aggregated(tracks=[ids[next(numbers)]])[0],
        "one segment": lambda: store.segments(ids[next(numbers)], layer=1)[3],
        "aggregated of all": lambda: store.aggregated(layer=1)[...],
    }
    own, other = interleaved(20 * repeats, lambda: rows[50 * next(numbers) + 3], queries["one segment"])
    yield f"segments()[i] of {len(ids)} tracks", ratio(own, other), "<= 2 of segments(t)[i]"
    quiet = interleaved(20 * repeats, *queries.values())
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    job = context.Process(target=_keep_writing, args=(store.path, store.spec, stop))
    job.start()
    time.sleep(0.5)
    busy = interleaved(20 * repeats, *queries.values())
    stop.set()
    job.join()
    for name, own, other in zip(queries, busy, quiet, strict=True):
        share = statistics.median(own) / statistics.median(other)
        yield f"{name}, {len(ids)} tracks, while a writer is active", share, "<= 3 of the time without one"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--tracks", type=int, nargs="+", default=[10_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="names of parts")
    parser.add_argument("--keep", action="store_true", help="keep tracks of queries in --folder")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[Path, int], Iterator[tuple[str, float, str]]]] = {
        "raw_write": raw_write,
        "memory": memory,
        "raw_read": raw_read,
        "publish": publish,
        "writers": writers,
        "reading_while_writing": reading_while_writing,
    }
    for tracks in arguments.tracks:
        where = arguments.folder if arguments.keep else None
        parts[f"queries_{tracks}"] = lambda folder, repeats, tracks=tracks, where=where: queries(
            where or folder, repeats, tracks, keep=where is not None
        )
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for part, function in parts.items():
            if arguments.only and not any(part.startswith(only) for only in arguments.only):
                continue
            for what, value, bar in function(Path(name), arguments.repeats):
                print(f"{what:<72} {value:9.2f}   bar: {bar}", flush=True)


if __name__ == "__main__":
    main()
