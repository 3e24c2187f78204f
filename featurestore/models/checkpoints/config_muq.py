"""config.json of a checkpoint of MuQ, which does for MusicFM too, as far as inference needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config import MOST_LAYERS, MOST_UNITS, Reader, check_conformer

MUSICFM = "musicfm"
"""Value of model_type that names MusicFM; MuQ has none and is known by `BLOCKS`."""

BLOCKS = "w2v2_config"
"""The part of config.json that says what the blocks are like, in the words of transformers' wav2vec2-conformer."""

SAMPLE_RATE, N_FFT, CONTEXT_SECONDS = 24_000, 2048, 30.0
"""Hz, samples and seconds; they are in no file."""

_STRIDES = {25: (2, 2), 50: (2, 1)}
"""Of the two parts of the subsampler in time, by frames a second."""

_MOST_DECIBELS = 1e6


@dataclass(frozen=True, kw_only=True)
class MuqConfig:
    """Shape of a network of MuQ or MusicFM.

    Parameters
    ----------
    encoder_dim, encoder_depth : int
        Width and number of the conformer blocks.
    num_attention_heads, intermediate_size, conv_depthwise_kernel_size, rotary_embedding_base
        As in `Mert2Config`.
    hidden_act : {"gelu", "silu", "swish"}
        Activation of the blocks.
    layer_norm_eps : float
        Added to the variance of the last state.
    n_mels, hop_length : int
        Mel spectra: bands, and their distance, samples.
    conv_dim : int
        Channels of the subsampler.
    strides : tuple of int
        Of the two parts of the subsampler in time.
    mel_mean, mel_std : float
        Of all bands, decibels.
    """

    encoder_dim: int
    encoder_depth: int
    num_attention_heads: int
    intermediate_size: int
    conv_depthwise_kernel_size: int
    rotary_embedding_base: float
    hidden_act: str
    layer_norm_eps: float
    n_mels: int
    hop_length: int
    conv_dim: int
    strides: tuple[int, int]
    mel_mean: float
    mel_std: float

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], statistics: Any, *, source: str, statistics_source: str
    ) -> MuqConfig:
        """Check the values of a config.json and keep what inference needs, as `MertConfig.from_dict` does.

        What is absent beside the blocks has the defaults of the package `muq`. `statistics`, as parsed, is a
        mapping with ``melspec_2048_mean`` and ``melspec_2048_std``; `statistics_source` names it in errors.
        """
        read, blocks = Reader(values, source), _part(values.get(BLOCKS), f"{source}: {BLOCKS}")
        stats = _part(statistics, statistics_source)
        blocks.choice("position_embeddings_type", ("rotary",))
        rate, bands = read.integer("label_rate", MOST_UNITS, 25), read.integer("n_mels", N_FFT // 2, 128)
        if rate not in _STRIDES:
            raise CheckpointError(f"{source}: label_rate {rate} is not supported, only 25 and 50 are")
        if bands % 4:
            raise CheckpointError(
                f"{source}: n_mels {bands} is no multiple of 4, as the subsampler halves it twice"
            )
        config = cls(
            encoder_dim=read.integer("encoder_dim", MOST_UNITS, 1024),
            encoder_depth=read.integer("encoder_depth", MOST_LAYERS, 12),
            num_attention_heads=blocks.integer("num_attention_heads", MOST_UNITS),
            intermediate_size=blocks.integer("intermediate_size", MOST_UNITS),
            conv_depthwise_kernel_size=blocks.integer("conv_depthwise_kernel_size", MOST_UNITS),
            rotary_embedding_base=blocks.number("rotary_embedding_base", 1, 1e12),
            hidden_act=blocks.choice("hidden_act", ("gelu", "silu", "swish")),
            layer_norm_eps=blocks.fraction("layer_norm_eps", 1e-5),
            n_mels=bands,
            hop_length=read.integer("hop_length", MOST_UNITS, 240),
            conv_dim=read.integer("conv_dim", MOST_UNITS, 512),
            strides=_STRIDES[rate],
            mel_mean=stats.number("melspec_2048_mean", -_MOST_DECIBELS, _MOST_DECIBELS),
            mel_std=stats.number("melspec_2048_std", 1e-5, _MOST_DECIBELS),
        )
        check_conformer(
            width=config.encoder_dim,
            heads=config.num_attention_heads,
            kernel=config.conv_depthwise_kernel_size,
            source=source,
        )
        return config


def is_muq(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is MuQ's, whose package writes no model_type."""
    return values.get("model_type") is None and BLOCKS in values


def _part(values: Any, source: str) -> Reader:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{source} is not a JSON object")
    return Reader(values, source)
