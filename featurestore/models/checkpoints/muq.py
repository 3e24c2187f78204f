"""Folders of MuQ and MusicFM, as their authors lay them out, to an encoder. Nothing of them is ever executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from featurestore.errors import CheckpointError
from featurestore.models.checkpoints.config_muq import MUSICFM, N_FFT, SAMPLE_RATE, MuqConfig
from featurestore.models.checkpoints.files import CONFIG, find_musicfm, find_weights, read_json
from featurestore.models.checkpoints.native import check_tensors, fill, single
from featurestore.models.checkpoints.shapes import MUQ_SHAPES
from featurestore.models.conformer import rotary_frequencies
from featurestore.models.frontends import mel_tensors
from featurestore.models.muq import MuqEncoder

_TRAINING_ONLY = re.compile(
    r"model\.(cls_token|(linear|recon_proj)\.(weight|bias)|(rvq|quantizer_melspec_2048(_\d+)?)\..+"
    r"|conformer\.pos_conv_embed\..+|.+\.num_batches_tracked)"
)
"""Tensors of the targets and heads of training, and a convolution of positions that neither network applies."""

_ROOMS = {
    "feature_extractor.": "model.preprocessor_melspec_2048.mel_stft.",
    "subsampling_module.0.": "model.conv.",
    "": "model.conformer.",
}
_PARTS = {
    ".attn": ".self_attn",
    ".query_proj.": ".linear_q.",
    ".key_proj.": ".linear_k.",
    ".value_proj.": ".linear_v.",
    ".out_proj.": ".linear_out.",
    ".w_1.": ".intermediate_dense.",
    ".w_2.": ".output_dense.",
    ".conv_block.1.": ".pointwise_conv1.",
    ".conv_block.3.": ".depthwise_conv.",
    ".conv_block.4.": ".batch_norm.",
    ".conv_block.6.": ".pointwise_conv2.",
}
"""What begins the names of our tensors, and parts of those of blocks, with the checkpoints' words for them."""


def load_muq_checkpoint(folder: Path, *, name: str, revision: str | None = None) -> MuqEncoder:
    """Load a checkpoint of MuQ: config.json and model.safetensors (or what else `find_weights` finds).

    Parameters and errors are those of `featurestore.models.checkpoints.native.load_checkpoint`.
    """
    source, values = str(folder / CONFIG), read_json(folder / CONFIG)
    statistics = values.get("stat")
    config = MuqConfig.from_dict(values, statistics, source=source, statistics_source=f"{source}: stat")
    return _load(config, find_weights(folder), folder, name=name, revision=revision)


def load_musicfm_checkpoint(folder: Path, *, name: str, revision: str | None = None) -> MuqEncoder:
    """Load a checkpoint of MusicFM: ``pretrained_msd`` and msd_stats.json, or else the two of ``fma``.

    Parameters, result and errors are those of `load_muq_checkpoint`. A config.json, in the words of MuQ's, is only
    needed by a network of another shape than those that are released.
    """
    source = folder / CONFIG
    values = read_json(source) if source.is_file() else {}
    if values.get("model_type") != MUSICFM:
        values = MUQ_SHAPES["musicfm"]
    stats, weights = find_musicfm(folder)
    config = MuqConfig.from_dict(values, read_json(stats), source=str(source), statistics_source=str(stats))
    return _load(config, [weights], folder, name=name, revision=revision)


def _load(config: MuqConfig, files: list[Path], folder: Path, *, name: str, revision: str | None) -> MuqEncoder:
    # Shapes only: nothing is allocated before the weights have shown that they are of this size.
    with torch.device("meta"):
        encoder = MuqEncoder(config, name=name, revision=revision)
    encoder.weights_sha256 = fill(encoder.network, files, partial(_fitting, config), source=str(folder))
    return encoder


def hub_name(key: str) -> str:
    """How the checkpoints call a tensor of our network."""
    beginning = next(x for x in _ROOMS if key.startswith(x))
    rest = key.removeprefix(beginning)
    if beginning == "":
        for ours, theirs in _PARTS.items():
            rest = rest.replace(ours, theirs)
    return _ROOMS[beginning] + rest


def known_tensors(config: MuqConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What makes spectra and positions: that which weights may hold too, and statistics, which they do not."""
    mel = mel_tensors(bands=config.n_mels, n_fft=N_FFT, sample_rate=SAMPLE_RATE)
    size = config.encoder_dim // config.num_attention_heads
    statistics = {"mel_mean": config.mel_mean, "mel_std": config.mel_std}
    return (
        {
            **{f"feature_extractor.{key}": value for key, value in mel.items()},
            "embed_positions.inv_freq": rotary_frequencies(size, config.rotary_embedding_base),
        },
        {
            f"feature_extractor.{key}": torch.full((config.n_mels,), value, dtype=torch.float32)
            for key, value in statistics.items()
        },
    )


def _fitting(
    config: MuqConfig, state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, Tensor]:
    """Check names and shapes strictly, and that spectra, positions and batch norms cannot give NaN."""
    given = {key: value for key, value in state.items() if not _TRAINING_ONLY.fullmatch(key)}
    optional, statistics = known_tensors(config)
    names = {key: hub_name(key) for key in wanted if key not in statistics}
    names = {key: name for key, name in names.items() if name in given or key not in optional}
    check_tensors(given, {name: wanted[key] for key, name in names.items()}, source=source)
    found = single({key: given[name] for key, name in names.items()})
    for key, value in found.items():
        if (key in optional or ".running_" in key) and not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {names[key]} holds NaN or infinity")
        if key.endswith(".running_var") and (value < 0).any():
            raise CheckpointError(f"{source}: {names[key]} holds a negative variance")
    return optional | statistics | found
