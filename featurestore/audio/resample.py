"""Resampling by windowed sinc, block after block, equal to torchaudio's resampling of the whole signal.

Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/, as torchaudio.functional.resample
has it: for rates without a common factor, output j is the sum over input i of x[i] k((i / orig - j / new) f), with
f = rolloff min(orig, new), k(t) = f / orig sinc(t) cos(pi t / 2 w)^2 for |t| < w, and 0 beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from featurestore.audio.info import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from featurestore.errors import SettingError

RESAMPLER = "torchaudio sinc_interp_hann width=6 rolloff=0.99"
"""How audio is brought to another rate; part of a feature's identity."""

_ZEROS = 6
_ROLLOFF = 0.99

_DENSE_LIMIT = 1 << 20
"""Elements of torchaudio's kernel up to which it is used: beyond, it soon takes gigabytes."""

_CHUNK = 1 << 17
"""Elements that are gathered at a time, so that they stay in a cache."""

_ONE_THREAD = 1 << 18
"""Multiplications up to which OpenBLAS makes a product in the thread that asks for it (interface/gemm.c)."""

Samples = npt.NDArray[np.float32]


def check_rate(sample_rate: int, name: str) -> None:
    """Raise SettingError, which names the setting, if audio cannot be brought to this rate (Hz)."""
    if not isinstance(sample_rate, int | np.integer) or not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise SettingError(
            f"`{name}`: the sample rate must be a whole number from {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,} "
            f"Hz, not {sample_rate!r}"
        )


def resample_blocks(blocks: Iterable[Samples], orig_rate: int, new_rate: int) -> Iterator[Samples]:
    """Bring a signal, in blocks of any lengths, to another sample rate.

    The blocks that it yields have ceil(new_rate * samples / orig_rate) samples together. Memory is that of a block
    and one second.
    """
    if orig_rate == new_rate:
        yield from blocks
        return
    divisor = math.gcd(orig_rate, new_rate)
    kernel = _kernel(orig_rate // divisor, new_rate // divisor)
    waiting: Samples = np.zeros(kernel.width, dtype=np.float32)
    taken = given = 0
    for block in blocks:
        taken += len(block)
        waiting = np.concatenate([waiting, block])
        if (steps := (len(waiting) - kernel.span) // kernel.orig + 1) > 0:
            yield kernel.apply(waiting, steps)
            given += steps * kernel.new
            waiting = waiting[steps * kernel.orig :]
    rest = -(-kernel.new * taken // kernel.orig) - given
    if rest > 0:
        steps = -(-rest // kernel.new)
        padding = (steps - 1) * kernel.orig + kernel.span - len(waiting)
        yield kernel.apply(np.pad(waiting, (0, padding)), steps)[:rest]


@dataclass(frozen=True, eq=False)
class _Kernel:
    """Filters that make `new` output samples of every `orig` input samples.

    Attributes
    ----------
    orig, new : int
        The rates without their common factor.
    width : int
        Samples before and after a step's own that its filters reach.
    weights : ndarray of float32
        (new, span) where `firsts` is None: all that a step reaches, for each output.
        (new, 2 * width + 1) else: only the taps that are not 0, of which `firsts` tells the first.
    firsts : ndarray of int64, shape (new,), or None
    """

    orig: int
    new: int
    width: int
    weights: Samples
    firsts: npt.NDArray[np.int64] | None

    @property
    def span(self) -> int:
        """Input samples that a step reaches."""
        return 2 * self.width + self.orig

    def apply(self, samples: Samples, steps: int) -> Samples:
        """Outputs of so many steps, the first of which begins `width` samples into `samples`."""
        out = np.empty((steps, self.new), dtype=np.float32)
        if self.firsts is None:
            windows = np.lib.stride_tricks.sliding_window_view(samples, self.span)[:: self.orig]
            together = max(2, _ONE_THREAD // self.weights.size)
            at_once = together * max(1, _CHUNK // (together * self.span))
            for i in range(0, steps, at_once):
                rows = min(at_once, steps - i)
                whole = rows - rows % together
                for first, n, shape in ((i, whole, (-1, together)), (i + whole, rows - whole, (-1,))):
                    taps = np.ascontiguousarray(windows[first : first + n]).reshape(*shape, self.span)
                    part = out[first : first + n].reshape(*shape, self.new)
                    np.matmul(taps, self.weights.T, out=part)
            return out.reshape(-1)
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.weights.shape[1])
        at_once = max(1, _CHUNK // self.weights.shape[1])
        for step in range(steps):
            for i in range(0, self.new, at_once):
                phases = slice(i, i + at_once)
                taps = windows[self.firsts[phases] + step * self.orig]
                out[step, phases] = np.einsum("ij,ij->i", taps, self.weights[phases])
        return out.reshape(-1)


@lru_cache(maxsize=16)
def _kernel(orig: int, new: int) -> _Kernel:
    """Kernel of a pair of rates without a common factor; of common rates, torchaudio's own but for last bits."""
    width = math.ceil(_ZEROS * orig / (_ROLLOFF * min(orig, new)))
    if new * (2 * width + orig) > _DENSE_LIMIT:
        return _sparse_kernel(orig, new, width)
    # Step for step in float32, as torchaudio.functional.resample has it for float32 signals.
    f32, scale = np.float32, _ROLLOFF * min(orig, new)
    steps = np.arange(-width, width + orig, dtype=f32) / f32(orig)
    t = np.arange(0, -new, -1, dtype=f32)[:, None] / f32(new) + steps
    t = np.clip(t * f32(scale), f32(-_ZEROS), f32(_ZEROS))
    window = np.cos(t * f32(math.pi) / f32(_ZEROS) / f32(2)) ** 2
    t *= f32(math.pi)
    weights = np.divide(np.sin(t), t, out=np.ones_like(t), where=t != 0) * (window * f32(scale / orig))
    return _Kernel(orig, new, width, weights, None)


def _sparse_kernel(orig: int, new: int, width: int) -> _Kernel:
    """The same filters by their formula, positions being exact, without their zeros."""
    firsts = np.arange(new, dtype=np.int64) * orig // new
    offsets = np.arange(-width, width + 1, dtype=np.int64) * new
    weights = np.empty((new, 2 * width + 1), dtype=np.float32)
    at_once = max(1, _CHUNK // len(offsets))
    for i in range(0, new, at_once):
        phases = np.arange(i, min(i + at_once, new), dtype=np.int64)
        t = (offsets - (phases * orig % new)[:, None]) * (_ROLLOFF / max(orig, new))
        inside = np.abs(t) < _ZEROS
        values = np.sinc(t) * np.cos(t * (math.pi / (2 * _ZEROS))) ** 2 * inside
        weights[i : i + at_once] = values * (_ROLLOFF * min(orig, new) / orig)
    return _Kernel(orig, new, width, weights, firsts)
