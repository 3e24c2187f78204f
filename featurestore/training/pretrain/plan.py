"""What every step of a training sees: windows, masks and mixtures, drawn from the seed and the step alone.

Nothing here has a state, so a training that is resumed, or spread over other processes, sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featurestore.training.pretrain.corpus import Corpus
from featurestore.training.pretrain.recipe import Recipe
from featurestore.training.pretrain.settings import MixingSettings

_EPOCH, _START, _MASK, _MIX, _EQUAL = range(5)


@dataclass(frozen=True)
class Window:
    """A window of a file.

    Attributes
    ----------
    file : int
        Index in the corpus.
    frame : int
        Where it begins.
    """

    file: int
    frame: int


@dataclass(frozen=True)
class Snippet:
    """A part of one window that is added to another.

    Attributes
    ----------
    window : int
        Index of the window it comes from, within the step.
    start, samples : int
        The part.
    into : int
        Sample of the other window where it is added.
    """

    window: int
    start: int
    samples: int
    into: int


class Plan:
    """Windows, masks and mixtures of every step.

    Parameters
    ----------
    corpus : Corpus
    recipe : Recipe
    per_step : int
        Windows of a step, of all processes and passes together.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, per_step: int) -> None:
        self.corpus, self.per_step = corpus, per_step
        self._seed, self._masking, self._mixing = recipe.run.seed, recipe.masking, recipe.mixing
        lengths = np.array([x.samples for x in corpus.entries])[corpus.usable]
        tiles = lengths // corpus.layout.window if recipe.data.windows_per_file == "all" else np.ones_like(lengths)
        self._files = np.repeat(corpus.usable, tiles)
        self._tiles = np.concatenate([np.arange(x) for x in tiles])
        self._of = np.repeat(tiles, tiles)
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def per_epoch(self) -> int:
        """Windows of an epoch."""
        return len(self._files)

    def windows(self, step: int) -> list[Window]:
        """Windows of a step, counted from 0."""
        return [self._window(step * self.per_step + i) for i in range(self.per_step)]

    def mask(self, step: int, window: int) -> npt.NDArray[np.bool_]:
        """Which frames of a window of a step are masked, shape (frames,)."""
        probability = self._masking.probability
        for begin, later in self._masking.schedule:
            if step >= begin:
                probability = later
        return span_mask(
            self._draw(_MASK, step, window), self.corpus.layout.count, probability, self._masking.span
        )

    def masks(self, step: int, windows: range) -> list[npt.NDArray[np.bool_]]:
        """Masks of the windows of a pass."""
        masks = [self.mask(step, x) for x in windows]
        return equalised(self._draw(_EQUAL, step, windows[0]), masks) if self._masking.equal else masks

    def mixture(self, step: int, window: int) -> list[Snippet]:
        """Snippets that are added to a window of a step."""
        return snippets(
            self._draw(_MIX, step, window),
            window,
            self.per_step,
            self.corpus.layout.window,
            self.corpus.layout.rate,
            self._mixing,
        )

    def _window(self, index: int) -> Window:
        epoch, place = divmod(index, self.per_epoch)
        known, order = self._order
        if known != epoch:
            order = self._draw(_EPOCH, epoch).permutation(self.per_epoch)
            self._order = (epoch, order)
        slot = int(order[place])
        file, tile, of = int(self._files[slot]), int(self._tiles[slot]), int(self._of[slot])
        starts = int(self.corpus.starts[file])
        low, high = tile * starts // of, max((tile + 1) * starts // of, tile * starts // of + 1)
        return Window(file, int(self._draw(_START, epoch, slot).integers(low, high)))

    def _draw(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, *purpose))


def span_mask(draw: np.random.Generator, frames: int, probability: float, span: int) -> npt.NDArray[np.bool_]:
    """Mask spans of frames as HuBERT does: their starts are drawn without replacement, spans may overlap.

    As fairseq's compute_mask_indices with static lengths; the number of spans is ``probability * frames / span``,
    rounded up or down at random, and at least 2 unless the probability is 0.

    Parameters
    ----------
    draw : Generator
        Decides.
    frames : int
        Of the window.
    probability : float
        Frames in all spans together, overlaps counted twice, over frames.
    span : int
        Frames.

    Returns
    -------
    ndarray of bool, shape (frames,)
    """
    mask = np.zeros(frames, bool)
    if not probability:
        return mask
    spans = max(2, int(probability * frames / span + draw.random()))
    # A short window has fewer places than spans are wanted: spans then reach beyond its end.
    places = frames - span if frames - span > spans else frames - spans - 1
    if places < 1:
        mask[:] = True
        return mask
    starts = draw.choice(places, min(spans, places), replace=False)
    covered = (starts[:, None] + np.arange(span)).ravel()
    mask[covered[covered < frames]] = True
    return mask


def equalised(draw: np.random.Generator, masks: list[npt.NDArray[np.bool_]]) -> list[npt.NDArray[np.bool_]]:
    """Masks that have lost random frames until all have as many as the poorest of them."""
    fewest = min(int(x.sum()) for x in masks)
    out = []
    for mask in masks:
        kept = np.zeros_like(mask)
        kept[draw.choice(np.flatnonzero(mask), fewest, replace=False) if fewest else []] = True
        out.append(kept)
    return out


def snippets(
    draw: np.random.Generator, window: int, windows: int, samples: int, rate: int, mixing: MixingSettings
) -> list[Snippet]:
    """Draw what is added to a window: with some probability, a few snippets of other windows of the step.

    Parameters
    ----------
    draw : Generator
        Decides.
    window, windows : int
        The window, and how many the step has.
    samples : int
        Of a window.
    rate : int
        Hz.
    mixing : MixingSettings
        How often, how many and how long.
    """
    if windows < 2 or draw.random() >= mixing.probability:
        return []
    shortest, longest = (round(x * rate) for x in mixing.seconds)
    found = []
    for _ in range(draw.integers(mixing.count[0], mixing.count[1] + 1)):
        other = (window + int(draw.integers(1, windows))) % windows
        length = int(draw.integers(shortest, longest + 1))
        start, into = (int(x) for x in draw.integers(0, samples - length + 1, size=2))
        found.append(Snippet(other, start, length, into))
    return found
