"""Spectra of music as torch modules: mel bands and the constant-Q transform, on any grid of frames."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.errors import SettingError

C1 = 440 * 2 ** (-45 / 12)
"""The lowest C of a piano, 32.703 Hz."""

_PASSBAND = 0.35
"""Highest frequency of a bin, in units of the rate of the samples that it is computed from."""

_TAPS = 47
"""Of the low-pass filter before every other sample is dropped: it lets 0.177 of the rate pass and stops 0.323."""

_STOPBAND_DB = 100


class MelBands(nn.Module):
    """Power in bands that are equally wide on the mel scale.

    Parameters
    ----------
    sample_rate : int
        Hz.
    hop : int
        Samples between two frames.
    bands : int
        Triangular bands from 0 Hz to half the sample rate, on HTK's mel scale, with a peak of 1.
    n_fft : int
        Samples of a frame, under a periodic Hann window.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, *, sample_rate: int = 24_000, hop: int = 320, bands: int = 128, n_fft: int = 2048) -> None:
        super().__init__()
        self.hop, self.n_fft = hop, n_fft
        window = torch.hann_window(n_fft, dtype=torch.float64)
        self.register_buffer("window", (window * 2 / window.sum()).float(), persistent=False)
        self.register_buffer("filters", _triangles(sample_rate, bands, n_fft), persistent=False)

    def forward(self, wave: Tensor, frames: int, first: int = 0) -> Tensor:
        """Power of each band; a sine of amplitude 1 has 1 where it lies.

        Parameters
        ----------
        wave : Tensor of float32, shape (windows, samples)
            Mono.
        frames : int
            How many.
        first : int
            Sample that is the middle of the first frame. What lies outside the window is silence.

        Returns
        -------
        Tensor of float32, shape (windows, frames, bands)
        """
        pieces = _pieces(wave, length=self.n_fft, hop=self.hop, start=first - self.n_fft // 2, count=frames)
        power = torch.fft.rfft(pieces * self.window).abs().square()
        return torch.matmul(power, self.filters)


class ConstantQ(nn.Module):
    """Amplitudes at frequencies of equal distance on a logarithmic scale (Brown 1991).

    Bins are computed octave by octave from ever lower rates (Schoerkhuber and Klapuri 2010). They equal the
    definition to 1e-4 of the largest amplitude: the mean of ``wave * exp(-2 pi i f t)`` under a Hann window of
    ``lengths`` samples around the middle of the frame, in absolute value, times 2.

    Parameters
    ----------
    sample_rate : int
        Hz.
    hop : int
        Samples between two frames.
    bins : int
        How many.
    bins_per_octave : int
        How many make an octave.
    lowest : float
        Hz, of the first bin.

    Attributes
    ----------
    lengths : Tensor of float32, shape (bins,)
        Samples under the window of each bin: ``sample_rate / (frequency * (2 ** (1 / bins_per_octave) - 1))``.
        Times ``sqrt(lengths) / 2``, the amplitudes are those of nnAudio's ``CQT`` with its defaults and of
        librosa's ``cqt``.

    Raises
    ------
    SettingError
        If the highest bin lies above half the sample rate.
    """

    lengths: Tensor
    low_pass: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 24_000,
        hop: int = 320,
        bins: int = 336,
        bins_per_octave: int = 48,
        lowest: float = C1,
    ) -> None:
        super().__init__()
        self.hop = hop
        frequencies = lowest * 2 ** (torch.arange(bins, dtype=torch.float64) / bins_per_octave)
        if frequencies[-1] >= sample_rate / 2:
            raise SettingError(
                f"{bins} bins, {bins_per_octave} per octave from {lowest:.1f} Hz, reach {frequencies[-1]:.0f} Hz; "
                f"audio at {sample_rate} Hz ends at {sample_rate / 2:.0f} Hz"
            )
        lengths = sample_rate / (frequencies * (2 ** (1 / bins_per_octave) - 1))
        # How often a bin may halve the rate: the bin must stay below the passband, and the hop whole.
        halvings = torch.log2(_PASSBAND * sample_rate / frequencies).floor().clamp(0, _twos(hop))
        self._levels: list[tuple[int, int, int]] = []
        for level in sorted({int(x) for x in halvings}):
            chosen = halvings == level
            kernels = _kernels(frequencies[chosen] / sample_rate * 2**level, lengths[chosen] / 2**level)
            self.register_buffer(f"kernels_{level}", kernels, persistent=False)
            self._levels.append((level, int(chosen.sum()), kernels.shape[0]))
        self.register_buffer("lengths", lengths.float(), persistent=False)
        self.register_buffer("low_pass", _low_pass(), persistent=False)

    def forward(self, wave: Tensor, frames: int, first: int = 0) -> Tensor:
        """Amplitude at each frequency; a sine of amplitude 1 has 1 at its own.

        Parameters
        ----------
        wave, frames, first
            As for `MelBands`.

        Returns
        -------
        Tensor of float32, shape (windows, frames, bins), from the lowest
        """
        deepest = self._levels[-1][0]
        # Room for the filters' tails, so much that the first middle is a whole sample at every rate.
        step = 2**deepest
        margin = (_TAPS // 2) * step
        left = margin + -(first + margin) % step
        wave = F.pad(wave, (left, margin))
        found = []
        done = 0
        for level, bins, length in self._levels:
            while done < level:
                wave = F.conv1d(wave[:, None], self.low_pass, stride=2, padding=_TAPS // 2)[:, 0]
                done += 1
            pieces = _pieces(
                wave,
                length=length,
                hop=self.hop >> level,
                start=((first + left) >> level) - length // 2,
                count=frames,
            )
            parts = pieces @ self.get_buffer(f"kernels_{level}")
            found.append(torch.hypot(parts[..., :bins], parts[..., bins:]))
        return torch.cat(found[::-1], dim=-1)


def _pieces(wave: Tensor, *, length: int, hop: int, start: int, count: int) -> Tensor:
    """`count` pieces of a signal, silent outside, from `start` on: shape (windows, count, length)."""
    end = start + (count - 1) * hop + length
    wave = F.pad(wave, (-start, end - wave.shape[-1]))  # a negative amount cuts
    return wave.unfold(-1, length, hop)


def _triangles(sample_rate: int, bands: int, n_fft: int) -> Tensor:
    """Bands that rise and fall linearly in Hz, equally far apart in HTK's mel: shape (frequencies, bands)."""
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, top, bands + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * sample_rate / n_fft
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


def _kernels(frequencies: Tensor, lengths: Tensor) -> Tensor:
    """Cosines, then sines, under windows whose sum is 2: shape (samples, 2 * bins).

    Of each bin, its frequency in cycles per sample, and the length of its window in samples.
    """
    half = math.ceil(float(lengths.max()) / 2)
    time = torch.arange(-half, half + 1, dtype=torch.float64)[:, None]
    window = torch.where(time.abs() < lengths / 2, 0.5 + 0.5 * torch.cos(2 * torch.pi * time / lengths), 0.0)
    window = window * 2 / window.sum(dim=0)
    phase = 2 * torch.pi * frequencies * time
    return torch.cat([window * torch.cos(phase), window * torch.sin(phase)], dim=1).float()


def _low_pass() -> Tensor:
    """A half-band filter: a sinc under a Kaiser window (Kaiser 1974), shape (1, 1, taps)."""
    time = torch.arange(-(_TAPS // 2), _TAPS // 2 + 1, dtype=torch.float64)
    beta = 0.1102 * (_STOPBAND_DB - 8.7)
    taps = torch.sinc(time / 2) * torch.kaiser_window(_TAPS, periodic=False, beta=beta, dtype=torch.float64)
    return (taps / taps.sum()).float()[None, None]


def _twos(number: int) -> int:
    """How often a number can be halved."""
    return (number & -number).bit_length() - 1
