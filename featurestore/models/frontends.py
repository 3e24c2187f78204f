"""From samples to what a network reads: normalised samples, or log-mel spectra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config import MOST_RATE, MOST_UNITS, extractor_reader
from featurestore.models.encoder import CONTEXT_SECONDS, check_longest

NORMALIZE_EPS = 1e-7
"""Added to the variance of a window; from transformers' Wav2Vec2FeatureExtractor."""

_LEAST_POWER, _LEAST_DEVIATION = 1e-10, 1e-5
"""Of a mel band of `StandardMel`: power and standard deviation below which neither falls."""

_SPECTRA = 4096
"""Spectra of a window that are there at a time; those of minutes would take more memory than the network."""

# Far above any such network, as the bounds of config.json.
MOST_FFT, MOST_SAMPLES = 1 << 14, 1 << 26


class Frontend(nn.Module):
    """What comes before a network.

    Attributes
    ----------
    sample_rate : int
        Hz.
    do_normalize : bool
        Whether each window is brought to zero mean and unit variance.
    min_samples : int
        Shortest window that gives a frame.
    context_seconds : float
        Length of the windows that the network was trained with.
    max_samples : int or None
        Longest window; None if there is no limit.
    """

    sample_rate: int
    do_normalize: bool
    min_samples: int
    context_seconds: float
    max_samples: int | None = None

    def frames(self, n_samples: int) -> int:
        """Frames of a window that belong to its samples."""
        raise NotImplementedError

    def of_window(self, state: Tensor, frames: int) -> Tensor:
        """The frames of a network's state that belong to a window, shape (windows, frames, dim)."""
        return state[:, :frames]


class Samples(Frontend):
    """For networks that begin with convolutions over the samples, which pad nothing."""

    def __init__(
        self, *, kernels: tuple[int, ...], strides: tuple[int, ...], sample_rate: int, do_normalize: bool
    ) -> None:
        super().__init__()
        self._convs = tuple(zip(kernels, strides, strict=True))
        self.sample_rate, self.do_normalize, self.context_seconds = sample_rate, do_normalize, CONTEXT_SECONDS
        self.min_samples = 1
        for kernel, stride in reversed(self._convs):
            self.min_samples = (self.min_samples - 1) * stride + kernel

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples; 0 if it is shorter than `min_samples`."""
        if n_samples < self.min_samples:
            return 0
        for kernel, stride in self._convs:
            n_samples = (n_samples - kernel) // stride + 1
        return n_samples

    def forward(self, wave: Tensor) -> Tensor:
        """Samples as the network wants them, shape (windows, samples)."""
        if not self.do_normalize:
            return wave
        variance, mean = torch.var_mean(wave, dim=1, correction=0, keepdim=True)
        return (wave - mean) / torch.sqrt(variance + NORMALIZE_EPS)


class LogMel(Frontend):
    """Log-mel spectra of Whisper (Radford et al. 2022, arXiv:2212.04356), as WhisperFeatureExtractor makes them.

    Whisper always hears the same length, 30 s: a shorter window is followed by silence up to it, as in
    training, and only those frames count whose middle lies within the window.

    Parameters
    ----------
    preprocessor : mapping
        Values of preprocessor_config.json; absent keys have the defaults of the extractor.
    config : PretrainedConfig
        Of the network: says what it reads.
    source : str
        Names the preprocessor_config.json in errors.

    Raises
    ------
    CheckpointError
        If a value is impossible, or the network reads something else.
    """

    do_normalize = False
    min_samples = 1
    max_samples: int

    def __init__(self, preprocessor: Mapping[str, Any], config: Any, *, source: str) -> None:
        from transformers.audio_utils import mel_filter_bank

        super().__init__()
        read = extractor_reader(preprocessor, "WhisperFeatureExtractor", source)
        if preprocessor.get("dither", 0) != 0:
            raise CheckpointError(f"{source}: dither adds noise, which no two runs would share; it must be 0")
        self.sample_rate = read.integer("sampling_rate", MOST_RATE, 16_000)
        self._hop, self._n_fft = read.integer("hop_length", MOST_FFT, 160), read.integer("n_fft", MOST_FFT, 400)
        seconds = read.integer("chunk_length", MOST_SAMPLES // self.sample_rate, 30)
        self.max_samples, self.context_seconds = seconds * self.sample_rate, float(seconds)
        bands, spectra = read.integer("feature_size", MOST_UNITS, 80), self.max_samples // self._hop
        mels, positions = config.num_mel_bins, config.max_source_positions
        if (bands, spectra) != (mels, 2 * positions):
            raise CheckpointError(
                f"{source}: {bands} bands and {spectra} spectra in {seconds} s are not the {mels} and "
                f"{2 * positions} that config.json asks for"
            )
        filters = mel_filter_bank(
            num_frequency_bins=1 + self._n_fft // 2,
            num_mel_filters=mels,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=self.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("_filters", torch.from_numpy(filters.T).float().contiguous(), persistent=False)
        self.register_buffer("_window", torch.hann_window(self._n_fft, dtype=torch.float32), persistent=False)

    def frames(self, n_samples: int) -> int:
        """Frames, of two spectra each, whose middle lies within the window.

        Raises
        ------
        SettingError
            If the window is longer than the network hears.
        """
        check_longest(n_samples, self.max_samples, self.sample_rate)
        return -(-n_samples // (2 * self._hop))

    def forward(self, wave: Tensor) -> Tensor:
        """Log-mel spectra, shape (windows, bands, spectra)."""
        wave = nn.functional.pad(wave, (0, self.max_samples - wave.shape[1]))
        window = self.get_buffer("_window")
        spectra = torch.stft(wave, self._n_fft, self._hop, window=window, return_complex=True)
        power = spectra[..., :-1].abs() ** 2
        log = torch.clamp(self.get_buffer("_filters") @ power, min=1e-10).log10()
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0


class StandardMel(nn.Module):
    """Standardised decibels of mel bands, as MERT-v2, MuQ and MusicFM hear them.

    Window, filters and statistics are tensors of the checkpoint, as torchaudio's transforms keep them:
    ``spectrogram.window``, ``mel_scale.fb``, ``mel_mean`` and ``mel_std``. Lengths of the transform, of its
    window, and the distance of the spectra are in samples.
    """

    def __init__(self, *, bands: int, n_fft: int, win_length: int, hop: int) -> None:
        super().__init__()
        self.spectrogram = _Spectrogram(n_fft=n_fft, win_length=win_length, hop=hop)
        self.mel_scale = _MelScale(bins=n_fft // 2 + 1, bands=bands)
        self.register_buffer("mel_mean", torch.empty(bands))
        self.register_buffer("mel_std", torch.empty(bands))

    def forward(self, wave: Tensor) -> Tensor:
        """Shape (windows, spectra, bands), of samples [window, sample]; there are ``samples // hop`` spectra."""
        bands = [self.mel_scale(power) for power in self.spectrogram.pieces(wave, _SPECTRA)]
        decibels = torch.cat(bands, dim=1).clamp_(min=_LEAST_POWER).log10_().mul_(10)
        deviation = self.get_buffer("mel_std").clamp(min=_LEAST_DEVIATION)
        standard: Tensor = decibels.sub_(self.get_buffer("mel_mean")).div_(deviation)
        return standard


def mel_tensors(*, bands: int, n_fft: int, sample_rate: int) -> dict[str, Tensor]:
    """Window and filters of a `StandardMel` by name: those of torchaudio's MelSpectrogram, to the last bit.

    Its arithmetic in float32 is repeated, as decibels of an almost empty band show its rounding.
    """
    top = 2595.0 * math.log10(1.0 + sample_rate / 2 / 700.0)
    mels = torch.linspace(0.0, top, bands + 2, dtype=torch.float32)
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, dtype=torch.float32)
    slopes, widths = corners - frequencies[:, None], corners.diff()
    falling, rising = slopes[:, 2:] / widths[1:], -slopes[:, :-2] / widths[:-1]
    return {
        "spectrogram.window": torch.hann_window(n_fft, dtype=torch.float32),
        "mel_scale.fb": torch.minimum(falling, rising).clamp(min=0),
    }


class _Spectrogram(nn.Module):
    def __init__(self, *, n_fft: int, win_length: int, hop: int) -> None:
        super().__init__()
        self._n_fft, self._hop = n_fft, hop
        self.register_buffer("window", torch.empty(win_length))

    def pieces(self, wave: Tensor, most: int) -> Iterator[Tensor]:
        """Power in pieces of at most so many spectra, shape (windows, spectra, bins).

        The middle of spectrum t is sample hop * t.
        """
        window, half = self.get_buffer("window"), self._n_fft // 2
        # The spectrum behind the last whole hop is dropped, as in training.
        count = wave.shape[1] // self._hop
        wave = nn.functional.pad(wave[:, None], (half, half), mode="reflect")[:, 0]
        for first in range(0, count, most):
            last = min(first + most, count) - 1
            part = wave[:, first * self._hop : last * self._hop + self._n_fft]
            spectra = torch.stft(
                part, self._n_fft, self._hop, len(window), window=window, center=False, return_complex=True
            )
            yield spectra.abs().square_().transpose(1, 2)


class _MelScale(nn.Module):
    def __init__(self, *, bins: int, bands: int) -> None:
        super().__init__()
        self.register_buffer("fb", torch.empty(bins, bands))

    def forward(self, power: Tensor) -> Tensor:
        return torch.matmul(power, self.get_buffer("fb"))
