"""Batches: audio, masks and targets of the windows of a step, read ahead by threads."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.errors import SourceError
from featurestore.training.pretrain.corpus import Corpus, read_window
from featurestore.training.pretrain.plan import Plan, Window


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one pass of the network takes.

    Attributes
    ----------
    windows : tuple of Window
        Where they come from.
    wave : Tensor of float32, shape (windows, samples)
        Mixed.
    clean : Tensor of float32, shape (windows, samples)
        Before it was mixed.
    mask : Tensor of bool, shape (windows, frames)
    masked, unmasked : Tensor of int64, shape (frames,)
        Indices of masked and other frames, of all windows in a row.
    tokens : dict of str to Tensor of int64, shape (windows, frames)
    dense : dict of str to Tensor of float32, shape (windows, frames, classes)
    cqt : Tensor of float32, shape (windows, frames, bins), or None
        Magnitudes, where they were computed before.
    """

    windows: tuple[Window, ...]
    wave: Tensor
    clean: Tensor
    mask: Tensor
    masked: Tensor
    unmasked: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    cqt: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        if device.type == "cpu":
            return self

        def moved(value: object) -> object:
            if isinstance(value, Tensor):
                return (
                    value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)
                )
            return {key: moved(x) for key, x in value.items()} if isinstance(value, dict) else value

        return Batch(**{x.name: moved(getattr(self, x.name)) for x in dataclasses.fields(self)})  # type: ignore[arg-type]


class Reader:
    """Reads batches of a corpus.

    Parameters
    ----------
    corpus : Corpus
    cqt : array of float16, shape (frames of all files, bins), optional
        Magnitudes, as `featurestore.training.pretrain.cqt` keeps them.
    """

    def __init__(self, corpus: Corpus, cqt: npt.NDArray[np.float16] | None) -> None:
        self._corpus, self._cqt = corpus, cqt

    def read(
        self, windows: Sequence[Window], masks: Sequence[npt.NDArray[np.bool_]], mixtures: Sequence[list[Part]]
    ) -> Batch:
        """Read windows, mix them, and cut out what belongs to them."""
        corpus, count = self._corpus, self._corpus.layout.count
        clean = np.stack([self.samples(x, 0, corpus.layout.window) for x in windows])
        wave = clean
        if any(mixtures):
            wave = clean.copy()
            for row, parts in zip(wave, mixtures, strict=True):
                for part in parts:
                    row[part.into : part.into + part.samples] += part.volume * self.samples(
                        part.window, part.start, part.samples
                    )
        mask = torch.from_numpy(np.stack(masks))
        rows = np.array([corpus.entries[x.file].first + x.frame for x in windows])[:, None] + np.arange(count)
        return Batch(
            windows=tuple(windows),
            wave=torch.from_numpy(wave),
            clean=torch.from_numpy(clean),
            mask=mask,
            masked=mask.flatten().nonzero()[:, 0],
            unmasked=(~mask).flatten().nonzero()[:, 0],
            tokens={name: torch.from_numpy(x[rows].astype(np.int64)) for name, x in corpus.tokens.items()},
            dense={name: torch.from_numpy(x[rows].astype(np.float32)) for name, x in corpus.dense.items()},
            cqt=None if self._cqt is None else torch.from_numpy(self._cqt[rows].astype(np.float32)),
        )

    def samples(self, window: Window, start: int, samples: int) -> npt.NDArray[np.float32]:
        """Samples of a part of a window."""
        entry, layout = self._corpus.entries[window.file], self._corpus.layout
        return read_window(entry, window.frame * layout.hop + start, samples, layout.rate)


@dataclass(frozen=True)
class Part:
    """A snippet of a window that is added to another at sample `into`."""

    window: Window
    start: int
    samples: int
    into: int
    volume: float


def batches(
    plan: Plan,
    reader: Reader,
    *,
    volume: float,
    batch: int,
    parts: int,
    rank: int,
    processes: int,
    first: int,
    threads: int,
) -> Iterator[list[Batch]]:
    """Batches of one process, step after step, read ahead.

    Parameters
    ----------
    plan : Plan
        Says what the windows are.
    reader : Reader
        Reads them.
    volume : float
        Of what is mixed in.
    batch, parts : int
        Windows of a pass, and passes of a step.
    rank, processes : int
        Which process of how many this is: the windows of a step go around.
    first : int
        Step to begin with.
    threads : int
        That read ahead.

    Yields
    ------
    list of Batch
        Of one step, one for each pass.
    """

    def prepared(step: int) -> list[Batch]:
        windows = plan.windows(step)
        made = []
        for part in range(parts):
            begin = (part * processes + rank) * batch
            chosen = range(begin, begin + batch)
            mixtures = [
                [Part(windows[x.window], x.start, x.samples, x.into, volume) for x in plan.mixture(step, i)]
                for i in chosen
            ]
            made.append(reader.read([windows[i] for i in chosen], plan.masks(step, chosen), mixtures))
        return made

    pending: deque[Future[list[Batch]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="reading ahead") as pool:
        step = first
        try:
            while True:
                while len(pending) < threads + 1:
                    pending.append(pool.submit(prepared, step))
                    step += 1
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def fixed_batches(corpus: Corpus, reader: Reader, plan: Plan, count: int, batch: int) -> list[Batch]:
    """The same windows of a corpus at every evaluation, evenly spread over its files, with masks, not mixed."""
    files = corpus.usable[np.unique(np.linspace(0, len(corpus.usable) - 1, count).round().astype(int))]
    each = -(-count // len(files))
    # As many places in each file as are needed, from its beginning to its end.
    places = np.linspace(0, 1, each) if each > 1 else np.array([0.5])
    found = [Window(int(x), int(place * (corpus.starts[x] - 1))) for place in places for x in files]
    windows = list(dict.fromkeys(found))[:count]
    parts = [range(len(windows))[i : i + batch] for i in range(0, len(windows), batch)]
    read = [reader.read([windows[i] for i in part], plan.masks(0, part), [[] for _ in part]) for part in parts]
    for made in read:
        _check_finite(corpus, made)
    return read


def _check_finite(corpus: Corpus, batch: Batch) -> None:
    """Raise a SourceError if a window has samples, or a spectrum, that are no numbers."""
    finite = batch.wave.isfinite().all(dim=1)
    if batch.cqt is not None:
        finite &= batch.cqt.isfinite().all(dim=2).all(dim=1)
    if len(bad := (~finite).nonzero()[:, 0]):
        window, layout = batch.windows[int(bad[0])], corpus.layout
        entry = corpus.entries[window.file]
        raise SourceError(
            f"{entry.path}, line {entry.line} of {corpus.manifest}, has samples that are no numbers, in or near "
            f"the window at {window.frame * layout.hop / layout.rate:.2f} s: repair it, or take it out"
        )
