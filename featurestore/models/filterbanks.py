"""From samples to the mel bands that networks of transformers read: Kaldi's filter banks and those of CLAP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config import MOST_RATE, MOST_UNITS, Reader, extractor_reader
from featurestore.models.encoder import CONTEXT_SECONDS, check_longest
from featurestore.models.frontends import MOST_FFT, MOST_SAMPLES, NORMALIZE_EPS, Frontend

_LENGTH, _HOP, _N_FFT, _LOWEST = 400, 160, 512, 20.0
"""Of Kaldi's filter banks at 16 kHz: window, distance and transform (samples), lowest frequency (Hz)."""

_PREEMPHASIS, _FLOOR, _INT16, _POVEY = 0.97, 1.192092955078125e-07, float(1 << 15), 0.85
"""The last is the exponent of a Hann window that makes it Povey's."""

_LEAST_POWER = 1e-10


class KaldiBanks(Frontend):
    """Standardised filter banks of w2v-BERT 2.0, as SeamlessM4TFeatureExtractor makes them.

    Each band has zero mean and unit variance over its window; `stride` spectra stand side by side in a frame, and
    those that do not fill one are left out, as the attention mask of the extractor does.

    Parameters and errors are those of `LogMel`.
    """

    do_normalize = True
    context_seconds = CONTEXT_SECONDS

    def __init__(self, preprocessor: Mapping[str, Any], config: Any, *, source: str) -> None:
        super().__init__()
        read = extractor_reader(preprocessor, "SeamlessM4TFeatureExtractor", source)
        bands, self._stride = read.integer("num_mel_bins", MOST_UNITS, 80), read.integer("stride", 64, 2)
        if bands * self._stride != config.feature_projection_input_dim:
            raise CheckpointError(
                f"{source}: num_mel_bins {bands} times stride {self._stride} is not the "
                f"feature_projection_input_dim {config.feature_projection_input_dim} of config.json"
            )
        self.sample_rate = _kaldi_rate(read)
        # A variance needs two spectra.
        self.min_samples = _LENGTH + (max(self._stride, 2) - 1) * _HOP
        self._banks = _KaldiSpectra(bands=bands, sample_rate=self.sample_rate, exponent=_POVEY, scale=_INT16)

    def frames(self, n_samples: int) -> int:
        """Frames that a window of `n_samples` samples fills."""
        return 0 if n_samples < self.min_samples else _spectra(n_samples) // self._stride

    def forward(self, wave: Tensor) -> Tensor:
        """Bands, shape (windows, frames, bands * stride)."""
        bands = _exact(self._banks(wave))
        variance, mean = torch.var_mean(bands, dim=1, correction=1, keepdim=True)
        bands = (bands - mean) / torch.sqrt(variance + NORMALIZE_EPS)
        frames = bands.shape[1] // self._stride
        return bands[:, : frames * self._stride].reshape(len(wave), frames, -1).float()


class PatchBanks(Frontend):
    """Filter banks of the Audio Spectrogram Transformer (Gong et al. 2021, arXiv:2104.01778).

    They are those of ASTFeatureExtractor. The network always reads `max_length` spectra: those that a window lacks
    are zeros before standardisation, as in training, and only frames whose patch lies within the window count.

    Parameters and errors are those of `LogMel`.
    """

    # It standardises by fixed numbers, not each window by its own: that is what do_normalize means in a spec.
    do_normalize = False
    max_samples: int

    def __init__(self, preprocessor: Mapping[str, Any], config: Any, *, source: str) -> None:
        super().__init__()
        read = extractor_reader(preprocessor, "ASTFeatureExtractor", source)
        bands, length = read.integer("num_mel_bins", MOST_UNITS, 128), read.integer("max_length", MOST_UNITS, 1024)
        if (bands, length) != (config.num_mel_bins, config.max_length) or config.patch_size > length:
            raise CheckpointError(
                f"{source}: {bands} bands and {length} spectra are not the {config.num_mel_bins} and "
                f"{config.max_length} that config.json asks for, in patches of {config.patch_size}"
            )
        self._mean = read.number("mean", -1e6, 1e6, -4.2677393)
        self._deviation = read.number("std", 1e-6, 1e6, 4.5689974)
        self._standardises = read.boolean("do_normalize", True)
        self._max_length, self._patch, self._stride = length, config.patch_size, config.time_stride
        self.sample_rate = _kaldi_rate(read)
        self.min_samples, self.max_samples = _LENGTH + (self._patch - 1) * _HOP, length * _HOP
        self.context_seconds = self.max_samples / self.sample_rate
        self._banks = _KaldiSpectra(bands=bands, sample_rate=self.sample_rate, exponent=1.0, scale=1.0)

    def frames(self, n_samples: int) -> int:
        """Patches along time that lie within a window of `n_samples` samples.

        Raises
        ------
        SettingError
            If the window is longer than the network hears.
        """
        check_longest(n_samples, self.max_samples, self.sample_rate)
        return 0 if n_samples < self.min_samples else (_spectra(n_samples) - self._patch) // self._stride + 1

    def of_window(self, state: Tensor, frames: int) -> Tensor:
        """Means of all patches of one time; the two tokens before them (class and distillation) are left out."""
        times = (self._max_length - self._patch) // self._stride + 1
        return state[:, 2:].reshape(len(state), -1, times, state.shape[2]).mean(dim=1)[:, :frames]

    def forward(self, wave: Tensor) -> Tensor:
        """Bands, shape (windows, max_length, bands)."""
        bands: Tensor = self._banks(wave)
        bands = F.pad(bands, (0, 0, 0, self._max_length - bands.shape[1]))
        if self._standardises:
            bands = (bands - self._mean) / (2 * self._deviation)
        return bands.float()


class ClapMel(Frontend):
    """Decibels of mel bands of CLAP (Wu et al. 2022, arXiv:2211.06687), as ClapFeatureExtractor makes them.

    CLAP always hears `max_samples`: a shorter window is followed by whole repetitions of itself and silence
    ("repeatpad"), by repetitions ("repeat"), or by silence ("pad"), as the checkpoint says. A network that fuses
    reads four spectrograms; of a window that is not too long all are the same.

    Parameters and errors are those of `LogMel`.
    """

    do_normalize = False
    min_samples = 1
    max_samples: int

    def __init__(self, preprocessor: Mapping[str, Any], config: Any, *, source: str) -> None:
        from transformers.audio_utils import mel_filter_bank

        super().__init__()
        read = extractor_reader(preprocessor, "ClapFeatureExtractor", source)
        self.sample_rate = rate = read.integer("sampling_rate", MOST_RATE, 48_000)
        self._hop = hop = read.integer("hop_length", MOST_FFT, 480)
        self._n_fft = n_fft = read.integer("fft_window_size", MOST_FFT, 1024)
        self.max_samples = max_samples = rate * read.integer("max_length_s", MOST_SAMPLES // rate, 10)
        self.context_seconds = max_samples / rate
        bands = read.integer("feature_size", MOST_UNITS, 64)
        highest = read.number("frequency_max", 1, rate / 2, 14_000)
        lowest = read.number("frequency_min", 0, highest / 2, 0)
        fusion = read.choice("truncation", ("fusion", "rand_trunc"), "fusion") == "fusion"
        self._padding = read.choice("padding", ("repeatpad", "repeat", "pad"), "repeatpad")
        self._copies = 4 if fusion else 1
        most = config.spec_size * (config.spec_size // config.num_mel_bins)
        if bands != config.num_mel_bins or max_samples // hop + 1 > most or n_fft // 2 >= max_samples:
            raise CheckpointError(
                f"{source}: {bands} bands and {max_samples // hop + 1} spectra of {n_fft} samples are not the "
                f"{config.num_mel_bins} bands and at most {most} spectra that config.json asks for"
            )
        if fusion != config.enable_fusion:
            raise CheckpointError(
                f"{source}: truncation is {preprocessor.get('truncation', 'fusion')!r}, but enable_fusion of "
                f"config.json is {config.enable_fusion}"
            )
        filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=bands,
            min_frequency=lowest,
            max_frequency=highest,
            sampling_rate=rate,
            norm=None if fusion else "slaney",
            mel_scale="htk" if fusion else "slaney",
        )
        self.register_buffer("_filters", torch.from_numpy(filters).float(), persistent=False)

    def frames(self, n_samples: int) -> int:
        """One, as CLAP gives one vector of a window.

        Raises
        ------
        SettingError
            If the window is longer than the network hears.
        """
        check_longest(n_samples, self.max_samples, self.sample_rate)
        return min(n_samples, 1)

    def forward(self, wave: Tensor) -> Tensor:
        """Decibels, shape (windows, 1 or 4, spectra, bands)."""
        wave = _exact(wave)
        times = {"pad": 1, "repeatpad": self.max_samples // wave.shape[1]}.get(self._padding)
        wave = wave.repeat(1, -(-self.max_samples // wave.shape[1]) if times is None else times)
        wave = F.pad(wave[:, : self.max_samples], (0, max(0, self.max_samples - wave.shape[1])))
        window = torch.hann_window(self._n_fft, dtype=wave.dtype, device=wave.device)
        spectra = torch.stft(wave, self._n_fft, self._hop, window=window, return_complex=True)
        bands = _power(spectra).transpose(1, 2) @ self.get_buffer("_filters").to(wave.dtype)
        decibels = 10 * bands.clamp(min=_LEAST_POWER).log10()
        return decibels.float()[:, None].expand(-1, self._copies, -1, -1)


class _KaldiSpectra(nn.Module):
    """Natural logarithms of mel bands in float32: shape (windows, spectra, bands), of samples [window, sample]."""

    def __init__(self, *, bands: int, sample_rate: int, exponent: float, scale: float) -> None:
        super().__init__()
        self._scale, self._exponent = scale, exponent
        self.register_buffer("_filters", _kaldi_filters(bands, sample_rate).float(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        pieces = (_exact(wave) * self._scale).unfold(1, _LENGTH, _HOP)
        pieces = pieces - pieces.mean(dim=2, keepdim=True)
        before = torch.cat([pieces[..., :1], pieces[..., :-1]], dim=2)
        window = torch.hann_window(_LENGTH, periodic=False, dtype=pieces.dtype, device=pieces.device)
        pieces = (pieces - _PREEMPHASIS * before) * window**self._exponent
        power = _power(torch.fft.rfft(pieces, _N_FFT))
        bands: Tensor = power @ self.get_buffer("_filters").to(power.dtype)
        return bands.clamp(min=_FLOOR).log().float()


def _spectra(n_samples: int) -> int:
    return (n_samples - _LENGTH) // _HOP + 1


def _power(spectra: Tensor) -> Tensor:
    return spectra.real.square() + spectra.imag.square()  # abs takes a root that is squared again


def _exact(wave: Tensor) -> Tensor:
    """In float64, as the extractors compute: beside a loud tone float32 hides the bands that are nearly silent."""
    return wave if wave.device.type == "mps" else wave.double()  # which has none


def _kaldi_filters(bands: int, sample_rate: int) -> Tensor:
    """Triangles on Kaldi's mel scale, straight in mel and not in Hz: float64, shape (bins, bands)."""
    bins = torch.arange(_N_FFT // 2 + 1, dtype=torch.float64)[:, None] * sample_rate / _N_FFT
    lowest, highest, mels = (
        1127 * torch.log1p(x / 700) for x in (torch.tensor(_LOWEST, dtype=torch.float64), bins[-1, 0], bins)
    )
    corners = torch.linspace(float(lowest), float(highest), bands + 2, dtype=torch.float64)
    width = corners[1] - corners[0]
    return (1 - (mels - corners[1:-1]).abs() / width).clamp(min=0)


def _kaldi_rate(read: Reader) -> int:
    rate = read.integer("sampling_rate", MOST_RATE, 16_000)
    if rate // 2 <= _LOWEST:
        raise CheckpointError(f"{read.source}: sampling_rate {rate} Hz leaves no band above {_LOWEST:g} Hz")
    return rate
