"""Sealed bundles beside Lance, Hugging Face datasets and a loop of np.load: the same segments, the same questions.

    python -m benchmarks.bundles [--folder DIR] [--tracks 10000] [--segments 10] [--layers 13] [--dim 768]

Lance (``pip install pylance``) and datasets are left out where they are not installed. All hold a row for each
segment; Lance and datasets a column for each layer, the fastest form that they have for these questions. Rounds of
all are interleaved, what is read is in the memory of the system, and each answer is compared with the first one's.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore import FeatureSpec, FeatureStore, StoreWriter

LAYER = 7
ROWS = 10_000
Array = npt.NDArray[Any]


class Music:
    """Made-up segments of made-up tracks, from one to nearly twice as many as are asked for each.

    Parameters
    ----------
    tracks, segments, layers, dim : int
        Sizes.
    """

    def __init__(self, *, tracks: int, segments: int, layers: int, dim: int) -> None:
        self.layers, self.dim = layers, dim
        rng = np.random.default_rng(0)
        self.counts = rng.integers(1, 2 * segments, tracks)
        self._block = rng.standard_normal((2 * segments, layers, dim), np.float32)

    def __iter__(self) -> Iterator[tuple[str, Array]]:
        for number, count in enumerate(self.counts.tolist()):
            yield f"genre/{number:06}", self._block[:count] + np.float32(number)


class Format(ABC):
    """A way to keep segments.

    Parameters
    ----------
    path : Path
        Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def write(self, music: Music) -> None:
        """Write all."""

    @abstractmethod
    def layer(self) -> Array:
        """One layer of all segments."""

    @abstractmethod
    def rows(self, rows: Array) -> Array:
        """One layer of some segments."""


class Bundles(Format):
    """Sealed tracks of a store."""

    seals = True

    def write(self, music: Music) -> None:
        spec = FeatureSpec.for_arrays(layers=music.layers, dim=music.dim)
        with StoreWriter(self.path, spec=spec, durable=False) as writer:
            for track_id, segments in music:
                writer.put(track_id, {"segments": segments})
            writer.pack(seal=self.seals or None)

    def layer(self) -> Array:
        return FeatureStore(self.path).segments(layer=LAYER).to_numpy()

    def rows(self, rows: Array) -> Array:
        return FeatureStore(self.path).segments(layer=LAYER)[rows]


class Folders(Bundles):
    """The same store, not sealed."""

    seals = False


class Npy(Format):
    """A file of numpy for each track."""

    def write(self, music: Music) -> None:
        self.path.mkdir()
        for track_id, segments in music:
            np.save(self.path / f"{track_id.replace('/', '_')}.npy", segments)
        np.save(self.path.with_suffix(".counts.npy"), music.counts)

    def _files(self) -> list[str]:
        return sorted(entry.path for entry in os.scandir(self.path))

    def layer(self) -> Array:
        return np.concatenate([np.load(file)[:, LAYER] for file in self._files()])

    def rows(self, rows: Array) -> Array:
        ends = np.cumsum(np.load(self.path.with_suffix(".counts.npy")))
        tracks, files = np.searchsorted(ends, rows, side="right"), self._files()
        firsts = np.concatenate([[0], ends[:-1]])
        pairs = zip(tracks.tolist(), (rows - firsts[tracks]).tolist(), strict=True)
        return np.stack([np.load(files[track], mmap_mode="r")[row, LAYER] for track, row in pairs])


def tables(music: Music) -> Iterator[Any]:
    """Tables of arrow, of some hundred tracks each: a row for each segment, a column for each layer."""
    pa = importlib.import_module("pyarrow")
    tracks = list(music.counts)
    waiting: list[Array] = []
    for number, (_, segments) in enumerate(music):
        waiting.append(segments)
        if len(waiting) == 500 or number == len(tracks) - 1:
            block, waiting = np.concatenate(waiting), []
            columns = [np.ascontiguousarray(block[:, layer]).reshape(-1) for layer in range(music.layers)]
            arrays = [pa.FixedSizeListArray.from_arrays(pa.array(column), music.dim) for column in columns]
            yield pa.table(arrays, names=[f"layer_{layer}" for layer in range(music.layers)])


def numbers(column: Any) -> Array:
    """Numbers of a column of arrow, [row, feature]."""
    parts = [part.flatten().to_numpy().reshape(len(part), -1) for part in column.chunks if len(part)]
    return np.concatenate(parts)


class Lance(Format):
    """A dataset of Lance."""

    def write(self, music: Music) -> None:
        lance = importlib.import_module("lance")
        for number, table in enumerate(tables(music)):
            lance.write_dataset(table, self.path, mode="append" if number else "create")
        lance.dataset(self.path).optimize.compact_files()

    def _open(self) -> Any:
        return importlib.import_module("lance").dataset(self.path)

    def layer(self) -> Array:
        return numbers(self._open().to_table(columns=[f"layer_{LAYER}"]).column(0))

    def rows(self, rows: Array) -> Array:
        return numbers(self._open().take(rows.tolist(), columns=[f"layer_{LAYER}"]).column(0))


class HuggingFace(Format):
    """A dataset of Hugging Face's `datasets`, in its files of arrow."""

    def write(self, music: Music) -> None:
        datasets = importlib.import_module("datasets")
        # With a fingerprint of our own: theirs does not pickle tables of newer releases of arrow.
        numbered = enumerate(tables(music))
        parts = [datasets.Dataset(datasets.table.InMemoryTable(x), fingerprint=f"{n:032x}") for n, x in numbered]
        datasets.concatenate_datasets(parts).save_to_disk(str(self.path))

    def _open(self) -> Any:
        datasets = importlib.import_module("datasets")
        return datasets.load_from_disk(str(self.path)).select_columns([f"layer_{LAYER}"])

    def layer(self) -> Array:
        return numbers(self._open().with_format("arrow")[:].column(0))

    def rows(self, rows: Array) -> Array:
        return numbers(self._open().with_format("arrow")[rows.tolist()].column(0))


FORMATS: dict[str, type[Format]] = {
    "bundles": Bundles,
    "folders": Folders,
    "npy": Npy,
    "lance": Lance,
    "datasets": HuggingFace,
}
NEEDS = {"lance": "lance", "datasets": "datasets"}


def measure(folder: Path, music: Music, *, names: list[str], rounds: int) -> Iterator[str]:
    """Lines of a table: seconds of each question, files and bytes."""
    formats = {name: FORMATS[name](folder / name) for name in names}
    wrote = {}
    for name, found in formats.items():
        began = time.perf_counter()
        if not found.path.exists():
            found.write(music)
        wrote[name] = time.perf_counter() - began
    rng, total = np.random.default_rng(1), int(music.counts.sum())
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):  # the first one brings it all into memory
        chosen = rng.integers(0, total, ROWS)
        answers: dict[str, Array] = {}
        for name, found in formats.items():
            for question, arguments in (("layer", ()), ("rows", (chosen,))):
                began = time.perf_counter()
                answer = getattr(found, question)(*arguments)
                times.setdefault((name, question), []).append(time.perf_counter() - began)
                if not np.array_equal(answers.setdefault(question, answer), answer):
                    raise AssertionError(f"{name} gives another {question}")
    yield f"{total:,} segments of {len(music.counts):,} tracks, {music.layers} x {music.dim}"
    yield f"{'':10} {'one layer, s':>14} {f'{ROWS:,} rows, s':>14} {'written, s':>12} {'files':>8} {'GB':>6}"
    for name, found in formats.items():
        layer, rows = (statistics.median(times[name, question][1:]) for question in ("layer", "rows"))
        files = [path for path in found.path.rglob("*") if "locks" not in path.parts]
        size = sum(path.stat().st_size for path in files if path.is_file()) / 1e9
        yield f"{name:10} {layer:14.3f} {rows:14.3f} {wrote[name]:12.1f} {len(files):8} {size:6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tracks", 10_000), ("segments", 10), ("layers", 13), ("dim", 768), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to work; what is there is used again, and kept")
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    there = [x for x in options.only if x not in NEEDS or importlib.util.find_spec(NEEDS[x]) is not None]
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bundles-"))
    music = Music(tracks=options.tracks, segments=options.segments, layers=options.layers, dim=options.dim)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for line in measure(folder, music, names=there, rounds=options.rounds):
            print(line)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
