"""A store of a million tracks, made without them: what packing, listing and reading cost there.

    python -m benchmarks.million [--folder DIR] [--tracks 1000000] [--layers 2] [--dim 8] [--only NAME] [--keep]

The packed table is written as packing would have written it, and of each track only its folder is there, empty:
a million tracks of 13 layers of 768 would be 40 GB twice, and hours. What is measured looks at names and at the
table, never into the folders of packed tracks. The tracks that are added are real. Times are CPU seconds of one
process; of a layer, they are ratios of what the clock says.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store.format.metadata import METADATA, encode_document
from featurestore.store.format.small_chunks import encode_texts
from featurestore.store.paths import StorePaths
from featurestore.store.table import layout
from featurestore.store.table.chunks import write_chunk
from featurestore.store.table.mtime_token import set_mtime_token
from featurestore.store.table.rows import ROW, ROWS, UNKNOWN, digest, encode_rows

NEW = 256


def make_store(path: Path, tracks: int, spec: FeatureSpec) -> None:
    """A store whose packed table has so many tracks."""
    StoreWriter(path, spec=spec).close()
    ids = [f"genre/{number:07d}" for number in range(tracks)]
    for number in range(tracks):
        os.mkdir(path / "aggregated" / f"genre=2f{number:07d}")
    rows = layout.chunk_rows(0, layout.chunk_size(tracks, 0))
    packed = path / "packed"
    for name in ("features", "track_id", "layer"):
        (packed / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(-(-tracks // rows)):
        own = ids[number * rows : (number + 1) * rows]
        (packed / "track_id" / layout.chunk_name("default", number)).write_bytes(encode_texts(own, rows))
        for layer in range(len(spec.layers)):
            chunk = np.full((rows, 1, spec.dim), np.nan, "<f4")
            chunk[: len(own)] = rng.standard_normal((len(own), 1, spec.dim), np.float32)
            write_chunk(packed / "features" / layout.chunk_name("default", number, layer, 0), chunk)
    (packed / "layer" / layout.chunk_name("default", 0)).write_bytes(layout.encode_layers(spec))
    described = np.zeros(tracks, ROW)
    described["revision"], described["changed"], described["segments"] = digest("0" * 32), UNKNOWN, UNKNOWN
    content, checksum = encode_rows(described)
    (packed / "track_id" / ROWS).write_bytes(content)
    token = set_mtime_token(StorePaths.of(path), ())
    assert token is not None
    own_attributes = {
        "generation": "0" * 32,
        "layout": 0,
        "fingerprint": spec.fingerprint,
        "rows_crc32c": checksum,
        **token.to_attributes(),
    }
    for name, document in layout.table_documents(tracks, rows, spec, own_attributes).items():
        (packed / name / METADATA).write_bytes(encode_document(document))
    os.sync()


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of some work in a process of its own, and the memory that it needed, MB."""

    def child(queue: multiprocessing.Queue[tuple[float, float]]) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        work()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        queue.put((time.process_time() - begun, (after - before) / 1024))

    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[tuple[float, float]] = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    found = queue.get()
    process.join()
    return found


def add(writer: StoreWriter, name: str) -> list[str]:
    """Add tracks that are not packed, as a build does: it knows where segments start."""
    ids = [f"{name}/{time.time_ns()}" for _ in range(NEW)]
    segments = np.ones((3, len(writer.spec.layers), writer.spec.dim), np.float32)
    for track_id in ids:
        writer.put(track_id, {"segments": segments}, starts=[0.0, 2.5, 5.0])
    return ids


def packing(path: Path, tracks: int) -> Iterator[tuple[str, tuple[float, float], str]]:
    spec = FeatureStore(path).spec

    def pack() -> None:
        with StoreWriter(path, spec=spec) as writer:
            assert writer.pack(thorough=False)

    def look() -> None:
        assert len(FeatureStore(path)) >= tracks

    yield "open and len, all packed", measured(look), ""
    with StoreWriter(path, spec=spec, durable=False) as writer:
        ids = add(writer, "first")
    yield f"open and len with {NEW} unpacked", measured(look), "<= 2 s"
    yield (
        f"open and read one layer with {NEW} unpacked",
        measured(lambda: FeatureStore(path).aggregated(layer=0)[...]),
        "",
    )
    yield f"pack of {NEW} new, by another process", measured(pack), ""
    with StoreWriter(path, spec=spec) as writer:
        add(writer, "second")
        begun = time.process_time()
        writer.pack(thorough=False)
        took = time.process_time() - begun
        yield f"pack of {NEW} new, by the writer that added them", (took, 0.0), "<= 1 s"
        writer.remove(ids[0])
    yield "open and len with one removed", measured(look), ""
    yield "pack after removing a late row", measured(pack), ""
    with StoreWriter(path, spec=spec) as writer:
        writer.remove(ids[1])
    yield "the same, which changes the names of chunks", measured(pack), ""
    yield "pack that looks at each track", measured(lambda: FeatureStore(path).pack()), ""


def reading(path: Path, _tracks: int) -> Iterator[tuple[str, tuple[float, float], str]]:
    peer = path.with_suffix(".npy")
    np.save(peer, FeatureStore(path).aggregated(layer=0)[...])

    def ours() -> float:
        begun = time.perf_counter()
        np.asarray(FeatureStore(path).aggregated(layer=0))
        return time.perf_counter() - begun

    def load() -> float:
        begun = time.perf_counter()
        np.load(peer)
        return time.perf_counter() - begun

    pairs = [(ours(), load()) for _ in range(6)][1:]
    speed = statistics.median(b / a for a, b in pairs)
    _, memory = measured(lambda: np.asarray(FeatureStore(path).aggregated(layer=0)))
    size = peer.stat().st_size / 2**20
    yield (
        f"one layer ({size:.0f} MB): speed to np.load of one .npy; MB above",
        (speed, memory - size),
        ">= 0.5, <= 200",
    )
    peer.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--tracks", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--only", nargs="+", help="names of parts")
    parser.add_argument(
        "--keep", action="store_true", help="keep the store in --folder, and use one that is there"
    )
    arguments = parser.parse_args()
    spec = FeatureSpec.for_arrays(layers=arguments.layers, dim=arguments.dim)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = arguments.folder if arguments.keep and arguments.folder else Path(name)
        path = folder / f"{arguments.tracks}x{arguments.layers}x{arguments.dim}.zarr"
        if not path.exists():
            make_store(path, arguments.tracks, spec)
        for part in (reading, packing):
            if arguments.only and part.__name__ not in arguments.only:
                continue
            for what, (value, memory), bar in part(path, arguments.tracks):
                print(f"{what:<72} {value:9.2f}   {memory:7.0f} MB   bar: {bar}", flush=True)
        if not arguments.keep:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
