"""What is learned from: the files of a manifest, and their labels frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio import read_header
from featurestore.audio.lists import read_list
from featurestore.errors import AudioError, SourceError
from featurestore.training.labels.tokens import dictionary_file, read_dictionary
from featurestore.training.pretrain.labels import read_dense, read_tokens
from featurestore.training.pretrain.recipe import Recipe


@dataclass(frozen=True)
class Frames:
    """How samples become frames.

    Attributes
    ----------
    rate : int
        Samples per second.
    hop : int
        Samples between two frames.
    window : int
        Samples of a window, a multiple of `hop` (the last of them, of which no frame begins, included).
    count : int
        Frames of a window.
    """

    rate: int
    hop: int
    window: int
    count: int


@dataclass(frozen=True)
class Entry:
    """A file of a manifest.

    Attributes
    ----------
    line : int
        In the manifest.
    path : str
        Where it is.
    rate : int
        Hz, its own.
    changed : int
        When, nanoseconds since 1970.
    samples : int
        At the rate of the model.
    frames : int
        ``samples // hop``: labels that it has.
    first : int
        Frames of all files before it.
    """

    line: int
    path: str
    rate: int
    changed: int
    samples: int
    frames: int
    first: int


@dataclass(frozen=True)
class Corpus:
    """A manifest with its labels.

    Attributes
    ----------
    manifest : Path
    layout : Frames
    entries : tuple of Entry
        All files of the manifest.
    usable : ndarray of int64
        Indices of those that have a window.
    starts : ndarray of int64, shape (entries,)
        Of how many frames a window of each file may begin.
    tokens : dict of str to ndarray of integers, shape (frames of all files,)
        Of each codebook.
    dense : dict of str to ndarray of uint8, shape (frames of all files, classes)
        Of each head.
    """

    manifest: Path
    layout: Frames
    entries: tuple[Entry, ...]
    usable: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    tokens: Mapping[str, npt.NDArray[Any]]
    dense: Mapping[str, npt.NDArray[np.uint8]]

    @property
    def frames(self) -> int:
        """Frames of all files."""
        return self.entries[-1].first + self.entries[-1].frames

    @property
    def seconds(self) -> float:
        """Of all files."""
        return sum(x.samples for x in self.entries) / self.layout.rate


def open_corpus(split: str, recipe: Recipe, layout: Frames, classes: Mapping[str, int]) -> Corpus:
    """Read a manifest and its labels, and check that they belong together.

    Parameters
    ----------
    split : str
        "train" or "valid".
    recipe : Recipe
        Names the folder and the labels.
    layout : Frames
        Of the model.
    classes : mapping of str to int
        Of each codebook.

    Raises
    ------
    SourceError
        If a file is missing or does not fit; the message names it and the line.
    """
    folder = Path(recipe.data.folder)
    manifest = folder / f"{split}.tsv"
    if not manifest.is_file():
        raise SourceError(
            f"{folder} has no {split}.tsv: a manifest of the audio, as fs-extract manifest writes it"
        )
    entries = tuple(_entries(manifest, layout))
    counts = np.array([x.frames for x in entries])
    tokens, short = {}, counts.copy()
    for name in recipe.data.labels:
        tokens[name], have = read_tokens(folder, split, name, entries, layout, classes[name])
        short = np.minimum(short, have)
    dense = {
        head.name: read_dense(folder / f"{split}.{head.name}.npy", int(counts.sum()), manifest)
        for head in recipe.heads
    }
    lengths = np.array([x.samples for x in entries])
    starts = np.minimum((lengths - layout.window) // layout.hop, short - layout.count) + 1
    starts = np.maximum(starts, 0)
    usable = np.flatnonzero(starts)
    if not len(usable):
        raise SourceError(
            f"{manifest}: no file is as long as a window, {layout.window / layout.rate:g} s: "
            "make data.window shorter"
        )
    return Corpus(manifest, layout, entries, usable, starts, tokens, dense)


def check_classes(train: Corpus, valid: Corpus) -> None:
    """Raise a SourceError unless the labels of both have the same classes."""
    for name, labels in train.dense.items():
        files = [x.manifest.with_suffix(f".{name}.npy") for x in (valid, train)]
        classes = [x.shape[1] for x in (valid.dense[name], labels)]
        if classes[0] != classes[1]:
            raise SourceError(
                f"{files[0]} has {classes[0]} classes, but {files[1]} has {classes[1]}: write both with the same"
            )


def codebook_classes(recipe: Recipe) -> dict[str, int]:
    """Classes of each codebook."""
    folder = Path(recipe.data.folder)
    return {name: read_dictionary(dictionary_file(folder, name)) for name in recipe.data.labels}


def _entries(manifest: Path, layout: Frames) -> Sequence[Entry]:
    entries: list[Entry] = []
    first = 0
    for listed in read_list(manifest):
        try:
            info = read_header(listed.path)
        except AudioError as error:
            raise SourceError(f"line {listed.line} of {manifest}: {error}") from None
        if info.frames is not None and info.frames != listed.samples:
            raise SourceError(
                f"line {listed.line} of {manifest} says {listed.samples} samples, but {listed.path} has "
                f"{info.frames} at {info.sample_rate} Hz: write the manifest again"
            )
        samples = round((listed.samples or 0) * layout.rate / info.sample_rate)
        frames = samples // layout.hop
        entries.append(Entry(listed.line, listed.path, info.sample_rate, info.mtime_ns, samples, frames, first))
        first += frames
    return entries


def read_window(entry: Entry, start: int, samples: int, rate: int) -> npt.NDArray[np.float32]:
    """Samples of a file from `start` on, mono, at `rate`.

    A file at that rate is read where it is needed; any other is decoded whole.

    Raises
    ------
    AudioError
        If the file cannot be decoded.
    """
    from featurestore.audio import load_audio, load_part

    out = np.zeros(samples, np.float32)
    found = np.zeros(0, np.float32)
    if entry.rate == rate:
        found = load_part(entry.path, start, samples)
    if not len(found):
        found = load_audio(entry.path, rate)[start : start + samples]
    out[: len(found)] = found
    return out
