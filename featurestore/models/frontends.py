"""From samples to what a network reads: normalised samples, or log-mel spectra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from featurestore.errors import CheckpointError, SettingError
from featurestore.models.checkpoints.config import MOST_UNITS, Reader

_NORMALIZE_EPS = 1e-7
"""Added to the variance of a window; from transformers' Wav2Vec2FeatureExtractor."""

# Far above any such network, as the bounds of config.json.
_MOST_FFT, _MOST_SAMPLES = 1 << 14, 1 << 26


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
    """

    sample_rate: int
    do_normalize: bool
    min_samples: int

    def frames(self, n_samples: int) -> int:
        """Frames of a window that belong to its samples."""
        raise NotImplementedError


class Samples(Frontend):
    """For networks that begin with convolutions over the samples.

    Parameters
    ----------
    kernels, strides : tuple of int
        Of these convolutions, samples; they pad nothing.
    sample_rate : int
        Hz.
    do_normalize : bool
        Whether each window is brought to zero mean and unit variance.
    """

    def __init__(
        self, *, kernels: tuple[int, ...], strides: tuple[int, ...], sample_rate: int, do_normalize: bool
    ) -> None:
        super().__init__()
        self._convs = tuple(zip(kernels, strides, strict=True))
        self.sample_rate, self.do_normalize = sample_rate, do_normalize
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
        return (wave - mean) / torch.sqrt(variance + _NORMALIZE_EPS)


class LogMel(Frontend):
    """Log-mel spectra of Whisper (Radford et al. 2022, arXiv:2212.04356), as WhisperFeatureExtractor makes them.

    Whisper always hears the same length, 30 s: a shorter window is followed by silence up to it, as in
    training, and only those frames count whose middle lies within the window.

    Parameters
    ----------
    mels : int
        Bands.
    n_fft, hop : int
        Length and distance of the spectra, samples.
    max_samples : int
        What the network hears, samples.
    sample_rate : int
        Hz.
    stride : int
        Spectra that become one frame.
    """

    do_normalize = False
    min_samples = 1

    def __init__(
        self, *, mels: int, n_fft: int, hop: int, max_samples: int, sample_rate: int, stride: int = 2
    ) -> None:
        from transformers.audio_utils import mel_filter_bank

        super().__init__()
        self.sample_rate, self.max_samples = sample_rate, max_samples
        self._n_fft, self._hop, self._samples_a_frame = n_fft, hop, hop * stride
        filters = mel_filter_bank(
            num_frequency_bins=1 + n_fft // 2,
            num_mel_filters=mels,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("_filters", torch.from_numpy(filters.T).float().contiguous(), persistent=False)
        self.register_buffer("_window", torch.hann_window(n_fft, dtype=torch.float32), persistent=False)

    @classmethod
    def from_dict(cls, preprocessor: Mapping[str, Any], *, mels: int, positions: int, source: str) -> Self:
        """Check the values of a preprocessor_config.json.

        Parameters
        ----------
        preprocessor : mapping
            As parsed; absent keys have the defaults of WhisperFeatureExtractor.
        mels, positions : int
            Bands and frames that the network reads.
        source : str
            Named in errors.

        Raises
        ------
        CheckpointError
            If a value is impossible, or the network reads something else.
        """
        read = Reader(preprocessor, source)
        kind = preprocessor.get("feature_extractor_type", "WhisperFeatureExtractor")
        if kind != "WhisperFeatureExtractor":
            raise CheckpointError(f"{source}: feature_extractor_type {kind!r} is not supported")
        if preprocessor.get("dither", 0) != 0:
            raise CheckpointError(f"{source}: dither adds noise, which no two runs would share; it must be 0")
        rate = read.integer("sampling_rate", 1_000_000, 16_000)
        hop, n_fft = read.integer("hop_length", _MOST_FFT, 160), read.integer("n_fft", _MOST_FFT, 400)
        seconds = read.integer("chunk_length", _MOST_SAMPLES // rate, 30)
        bands = read.integer("feature_size", MOST_UNITS, 80)
        spectra = seconds * rate // hop
        if (bands, spectra) != (mels, 2 * positions):
            raise CheckpointError(
                f"{source}: {bands} bands and {spectra} spectra in {seconds} s are not the {mels} and "
                f"{2 * positions} that config.json asks for"
            )
        return cls(mels=mels, n_fft=n_fft, hop=hop, max_samples=seconds * rate, sample_rate=rate)

    def frames(self, n_samples: int) -> int:
        """Frames whose middle, a multiple of hop times stride, lies within the window.

        Raises
        ------
        SettingError
            If the window is longer than the network hears.
        """
        if n_samples > self.max_samples:
            raise SettingError(
                f"this model hears {self.max_samples / self.sample_rate:g} s at most, and a window of {n_samples} "
                f"samples has {n_samples / self.sample_rate:g} s: choose a shorter `segment_duration`"
            )
        return -(-n_samples // self._samples_a_frame)

    def forward(self, wave: Tensor) -> Tensor:
        """Log-mel spectra, shape (windows, bands, spectra)."""
        wave = nn.functional.pad(wave, (0, self.max_samples - wave.shape[1]))
        window = self.get_buffer("_window")
        spectra = torch.stft(wave, self._n_fft, self._hop, window=window, return_complex=True)
        power = spectra[..., :-1].abs() ** 2
        log = torch.clamp(self.get_buffer("_filters") @ power, min=1e-10).log10()
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0
