"""HDF5, similar tracks and probes: ratios in one run, interleaved, medians, beside what was asked for.

Reads are warm, and ratios of theirs are of CPU time, which other programs disturb less.

    python -m benchmarks.questions [--only hdf5 similar probe] [--rows 1000000] [--repeats 5] [--folder DIR]

A million rows take 3 GB of disk, and as much memory if they are to stay in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.store import interleaved, ratio, save, timed
from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.store.hdf5.export import export_hdf5
from featurestore.store.source import Source
from featurestore.store.verify import VerifyReport

Rows = Iterator[tuple[str, float, str]]
DIM = 768


def hdf5(folder: Path, repeats: int, *, tracks: int = 200, layers: int = 13, dim: int = DIM) -> Rows:
    """One file against a loop over files of numpy, and against the store that it was exported from."""
    random = np.random.default_rng(0)
    spec = FeatureSpec.for_arrays(layers=layers, dim=dim)
    arrays = [random.standard_normal((60, layers, dim), dtype=np.float32) for _ in range(tracks)]
    raw = random.standard_normal((24, layers, 374, dim), dtype=np.float32)
    paths = [folder / f"{number}.npy" for number in range(tracks)]
    with StoreWriter(folder / "s.zarr", spec=spec, durable=False) as writer:
        for number, array in enumerate(arrays):
            writer.put(f"t{number:04}", {"segments": array})
        writer.pack()
    with StoreWriter(folder / "raw.zarr", spec=spec, durable=False) as writer:
        writer.put("raw", {"raw": raw})
    np.save(folder / "raw.npy", raw)
    store = FeatureStore(folder / "s.zarr")
    one = FeatureStore(FeatureStore(folder / "raw.zarr").export(folder / "raw.h5", level="all"))

    def save_all() -> None:  # an export ends with fsync as well
        for path, array in zip(paths, arrays, strict=True):
            save(path, array, sync=True)

    exported, saved = interleaved(repeats, lambda: store.export(folder / "s.h5"), save_all)
    yield "export, to np.save and fsync", ratio(exported, saved), "<= 2.5"
    file, layer = FeatureStore(folder / "s.h5"), layers // 2
    ours, mapped, loaded, stored = interleaved(
        repeats,
        lambda: file.segments(layer=layer).to_numpy(),
        lambda: np.concatenate([np.load(path, mmap_mode="r")[:, layer] for path in paths]),
        lambda: np.concatenate([np.load(path)[:, layer] for path in paths]),
        lambda: store.segments(layer=layer).to_numpy(),
        clock=time.process_time,
    )
    yield "one layer of all segments, to a loop over memory maps", ratio(ours, mapped), "<= 0.7"
    yield "the same, to np.load: faster by", ratio(loaded, ours), ">= 6"
    yield "the same, to the store: faster by", ratio(stored, ours), ">= 2"
    ours, mapped = interleaved(
        repeats,
        lambda: one.raw("raw", layer=layer).to_numpy(),
        lambda: np.array(np.load(folder / "raw.npy", mmap_mode="r")[:, layer]),
        clock=time.process_time,
    )
    yield "one layer of a raw track, to a memory map", ratio(ours, mapped), "<= 1.6"


class Invented(Source):
    """Tracks of random features that are of ten kinds, more so in higher layers."""

    def __init__(self, tracks: int, layers: int, dim: int) -> None:
        self.path, self.spec = Path("invented"), FeatureSpec.for_arrays(layers=layers, dim=dim)
        self._kinds = np.random.default_rng(0).standard_normal((10, dim), dtype=np.float32)
        self._ids = [f"t{number:07}" for number in range(tracks)]

    def track_ids(self) -> Sequence[str]:
        return self._ids

    def has(self, track_id: str) -> bool:
        return track_id in self._ids

    def attributes(self, track_id: str) -> Mapping[str, Any]:
        return {"track_id": track_id, "kinds": ["aggregated"], "starts": []}

    def read_aggregated(self, track_ids: Sequence[str], positions: Sequence[int]) -> npt.NDArray[Any]:
        numbers = np.array([int(track_id[1:]) for track_id in track_ids])
        random = np.random.default_rng(int(numbers[0]) + 1)
        rows = random.standard_normal((len(numbers), len(positions), self.spec.dim), dtype=np.float32)
        strength = 0.02 * np.array(positions, np.float32)[:, None] + 0.1
        return 4 + rows + strength * self._kinds[numbers % 10][:, None]

    def describe(self, kind: str, track_id: str) -> Any:
        raise NotImplementedError

    def read_segments(self, kind: str, track_id: str, positions: Sequence[int], **_: Any) -> Any:
        raise NotImplementedError

    def verify(self, *, deep: bool) -> VerifyReport:
        raise NotImplementedError

    @property
    def format(self) -> int:
        return 0

    @property
    def packed(self) -> int:
        return len(self._ids)


def invented(path: Path, tracks: int, layers: int, dim: int) -> FeatureStore:
    """A file of as many tracks, which no build has to be waited for."""
    source = Invented(tracks, layers, dim)
    export_hdf5(source, path, source.track_ids(), layers=source.spec.layers, kinds=["aggregated"])
    return FeatureStore(path)


def similar(folder: Path, repeats: int, *, rows: int = 1_000_000, dim: int = DIM) -> Rows:
    """Exact search over all tracks, to reading them once."""
    path = invented(folder / "similar.h5", rows, 1, dim).path
    ids = [f"t{number:07}" for number in range(0, rows, rows // 100)][:100]

    def read(store: FeatureStore) -> None:
        view = store.aggregated(layer=0)
        for first in range(0, rows, 2**14):
            view[first : first + 2**14]

    first, once = [], []
    for store in [FeatureStore(path) for _ in range(repeats)]:
        once.append(timed(partial(read, store)))
        first.append(timed(partial(store.similar, ids[0], layer=0)))
    yield "the first query, to reading all once", ratio(first, once), "<= 4"
    asked = iter(ids)
    index = store._similarity._rows(0, "aggregated", "centred-cosine").index
    vectors = store.aggregated(layer=0, tracks=ids).to_numpy()
    one, many, once = interleaved(
        repeats,
        lambda: store.similar(next(asked), layer=0),
        lambda: index.search(vectors, 10),
        lambda: read(store),
    )
    yield "the next query, to reading all once", ratio(one, once), "<= 1.2"
    yield "100 queries at once, to reading all once", ratio(many, once), "<= 6"
    features = store.aggregated(layer=0).to_numpy()
    features -= features.mean(axis=0, dtype=np.float64).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    same = 0
    for track_id in ids[:5]:
        scores = features @ features[int(track_id[1:])]
        best = np.argsort(-scores, kind="stable")[1:11]
        same += [match.track_id for match in store.similar(track_id, layer=0)] == [f"t{x:07}" for x in best]
    yield "queries of 5 whose ten tracks are those of brute force", float(same), ">= 5"


def probe(folder: Path, _: int, *, tracks: int = 10_000, layers: int = 13, dim: int = DIM) -> Rows:
    """Linear probes of all layers, artists held apart."""
    store = invented(folder / "probe.h5", tracks, layers, dim)
    labels = {f"t{n:07}": {"genre": str(n % 10), "artist": n // 10 % (tracks // 20)} for n in range(tracks)}
    before = time.process_time()
    report = store.probe(labels, "genre", group="artist")
    yield f"CPU s of {layers} layers of {tracks} tracks", time.process_time() - before, "<= 120"
    yield "points between shuffled labels and chance", 100 * abs(report.shuffled - report.chance), "<= 2"


PARTS = {"hdf5": hdf5, "similar": similar, "probe": probe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="of `similar`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    for name in arguments.only:
        sizes = {"rows": arguments.rows} if name == "similar" else {}
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for what, value, bar in PARTS[name](Path(folder), arguments.repeats, **sizes):
                print(f"{what:<60} {value:8.2f}   asked for {bar}", flush=True)


if __name__ == "__main__":
    main()
