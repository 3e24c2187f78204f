"""config.json of a checkpoint of MERT-v2 and the settings of its audio, as far as inference needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config import (
    MOST_LAYERS,
    MOST_RATE,
    MOST_UNITS,
    Reader,
    check_conformer,
)

SAMPLE_RATE = 24_000
"""Hz, where a checkpoint does not say."""

MODEL_TYPE = "mert2"
"""Value of model_type that names this network."""

STRIDES = (1, 2, 2)
"""Of the stages of the subsampler; they are in no file."""

_CONTEXTS = {"30s": 30.0, "fs": 360.0}
"""Longest window of each variant that is released, seconds."""

_MOST_SECONDS, _MOST_BASE = 86_400, 1e12


@dataclass(frozen=True, kw_only=True)
class Mert2Config:
    """Shape of a MERT-v2 network; the fields are those of config.json.

    Parameters
    ----------
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size : int
        Conformer blocks.
    conv_depthwise_kernel_size : int
        Frames that the convolution of a block sees; odd.
    rotary_embedding_base : float
        Of the wavelengths of the rotary positions.
    num_mel_bins, n_fft, win_length, hop_length : int
        Mel spectra: bands, and lengths and distance of the spectra, samples.
    subsampling_channels, subsampling_depths : tuple of int
        Channels and ConvNeXt layers of each stage of the subsampler.
    layer_norm_eps, subsampling_layer_norm_eps : float
        Added to variances.
    context_seconds : float
        Longest window that the network was trained with.
    sampling_rate : int or None
        Hz, where the file says it.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    conv_depthwise_kernel_size: int
    rotary_embedding_base: float
    num_mel_bins: int
    n_fft: int
    win_length: int
    hop_length: int
    subsampling_channels: tuple[int, ...]
    subsampling_depths: tuple[int, ...]
    layer_norm_eps: float = 1e-5
    subsampling_layer_norm_eps: float = 1e-6
    context_seconds: float
    sampling_rate: int | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str) -> Mert2Config:
        """Check the values of a config.json and keep what inference needs, as `MertConfig.from_dict` does.

        What shapes the network and cannot be checked against the weights must be there.
        """
        read = Reader(values, source)
        n_fft = read.integer("n_fft", MOST_UNITS)
        variant = None if values.get("variant") is None else read.choice("variant", tuple(_CONTEXTS))
        config = cls(
            hidden_size=read.integer("hidden_size", MOST_UNITS),
            num_hidden_layers=read.integer("num_hidden_layers", MOST_LAYERS),
            num_attention_heads=read.integer("num_attention_heads", MOST_UNITS),
            intermediate_size=read.integer("intermediate_size", MOST_UNITS),
            conv_depthwise_kernel_size=read.integer("conv_depthwise_kernel_size", MOST_UNITS),
            rotary_embedding_base=read.number("rotary_embedding_base", 1, _MOST_BASE),
            num_mel_bins=read.integer("num_mel_bins", MOST_UNITS),
            n_fft=n_fft,
            win_length=read.integer("win_length", n_fft, n_fft),
            hop_length=read.integer("hop_length", MOST_UNITS),
            subsampling_channels=read.integers("subsampling_channels"),
            subsampling_depths=read.integers("subsampling_depths"),
            layer_norm_eps=read.fraction("layer_norm_eps", 1e-5),
            subsampling_layer_norm_eps=read.fraction("subsampling_layer_norm_eps", 1e-6),
            context_seconds=read.number("context_seconds", 0.1, _MOST_SECONDS, _CONTEXTS.get(variant or "")),
            sampling_rate=read.integer("sampling_rate", MOST_RATE) if "sampling_rate" in values else None,
        )
        config._check_fit(source)
        return config

    def _check_fit(self, source: str) -> None:
        channels, depths = self.subsampling_channels, self.subsampling_depths
        if not len(channels) == len(depths) == len(STRIDES):
            raise CheckpointError(
                f"{source}: subsampling_channels and subsampling_depths must have {len(STRIDES)} numbers each"
            )
        if max(depths) > MOST_LAYERS:
            raise CheckpointError(f"{source}: subsampling_depths must be at most {MOST_LAYERS}, not {depths}")
        if (channels[0], channels[-1]) != (self.num_mel_bins, self.hidden_size):
            raise CheckpointError(
                f"{source}: subsampling_channels {channels} must begin with num_mel_bins {self.num_mel_bins} and "
                f"end with hidden_size {self.hidden_size}"
            )
        if self.n_fft % 2:
            raise CheckpointError(f"{source}: n_fft must be even, not {self.n_fft}: spectra have a middle sample")
        check_conformer(
            width=self.hidden_size,
            heads=self.num_attention_heads,
            kernel=self.conv_depthwise_kernel_size,
            source=source,
        )
