"""Checkpoints of random weights in the hub's layout: for demonstrations, tests and benchmarks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurestore.errors import SettingError
from featurestore.models.checkpoints.config import MertConfig
from featurestore.models.checkpoints.config_mert2 import MODEL_TYPE as MERT2
from featurestore.models.checkpoints.config_mert2 import Mert2Config
from featurestore.models.checkpoints.config_muq import MUSICFM, MuqConfig, is_muq
from featurestore.models.checkpoints.files import CONFIG, MUSICFM_FILES, PREPROCESSOR, SAFETENSORS
from featurestore.models.checkpoints.muq import hub_name, known_tensors
from featurestore.models.checkpoints.shapes import MERT2_SHAPES, MUQ_SHAPES, MUQ_STATISTICS, SHAPES
from featurestore.models.mert import MertEncoder
from featurestore.models.mert2 import Mert2Encoder
from featurestore.models.muq import MuqEncoder
from featurestore.models.spectra import MelBands


def save_random_checkpoint(
    folder: str | os.PathLike[str],
    *,
    shape: str | Mapping[str, Any] = "95m",
    seed: int = 0,
    do_normalize: bool | None = None,
) -> Path:
    """Write a checkpoint of random weights, as transformers initialises HuBERT, or of MERT-v2, MuQ or MusicFM.

    Parameters
    ----------
    folder : path
        Made if it does not exist; gets config.json, preprocessor_config.json and model.safetensors, as the hub
        has them: MuQ has no preprocessor_config.json, and MusicFM has pretrained_msd.pt and msd_stats.json.
    shape : {"95m", "330m", "tiny", "mert2-30s", "mert2-fs", "mert2-tiny", "muq", "muq-tiny", "musicfm", \
"musicfm-tiny"} or mapping
        A shape of `featurestore.models.checkpoints.shapes`, or the values of a config.json.
    seed : int
        The same seed gives the same weights.
    do_normalize : bool, optional
        Whether the model brings windows to zero mean and unit variance: by default it does, but for MERT-v2,
        MuQ and MusicFM, which cannot.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SettingError
        If there is no such shape, or one of these three is to normalise.
    CheckpointError
        If the values of the mapping are no config.json of these networks.

    Examples
    --------
    >>> from featurestore.models import save_random_checkpoint
    >>> folder = save_random_checkpoint("random", shape="tiny", seed=1)
    >>> load_model(folder).layers
    3
    """
    from safetensors.torch import save_file

    shapes = {**SHAPES, **MERT2_SHAPES, **MUQ_SHAPES}
    if isinstance(shape, str) and shape not in shapes:
        raise SettingError(f"shape must be one of {', '.join(shapes)} or a mapping, not {shape!r}")
    values = dict(shapes[shape] if isinstance(shape, str) else shape)
    generator = torch.Generator().manual_seed(seed)
    kind = values.get("model_type")
    muq = kind == MUSICFM or is_muq(values)
    if do_normalize and (muq or kind == MERT2):
        network = {MERT2: "MERT-v2", MUSICFM: "MusicFM"}.get(str(kind), "MuQ")
        raise SettingError(f"do_normalize must be False: {network} does not hear normalised audio")
    rate: int | None = None
    if muq:
        state = _muq_state(values, generator)
    elif kind == MERT2:
        mert2 = Mert2Config.from_dict(values, source="shape")
        do_normalize, rate = False, mert2.sampling_rate
        state = _mert2_state(mert2, generator)
    else:
        config = MertConfig.from_dict(values, source="shape")
        do_normalize, rate = do_normalize is not False, config.sample_rate
        state = _hubert_state(config, generator)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    _write_json(path / CONFIG, dict(sorted(values.items())))
    if kind == MUSICFM:
        stats, (_, weights) = MUSICFM_FILES[0]
        _write_json(path / stats, MUQ_STATISTICS)
        torch.save({"state_dict": state}, path / weights)
        return path
    if not muq:
        _write_json(
            path / PREPROCESSOR,
            {
                "do_normalize": do_normalize,
                "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                "feature_size": 1,
                "padding_value": 0,
                "sampling_rate": rate or 24_000,
            },
        )
    save_file(state, path / SAFETENSORS, metadata={"format": "pt"})
    return path


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _hubert_state(config: MertConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights as transformers' HubertPreTrainedModel initialises them, with the hub's names."""
    with torch.device("meta"):
        network = MertEncoder(config, sample_rate=1, do_normalize=False)
    state: dict[str, Tensor] = {
        "masked_spec_embed": torch.rand(config.hidden_size, generator=generator, dtype=torch.float32),
    }
    for key, meta in network.state_dict().items():
        value = _random(key, meta.shape, generator)
        if key == "encoder.pos_conv_embed.conv.weight":
            state[f"{key}_v"] = value
            state[f"{key}_g"] = torch.linalg.vector_norm(value, dim=(0, 1), keepdim=True)
        else:
            state[key] = value
    return state


def _mert2_state(config: Mert2Config, generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights, and the window, filters and statistics of spectra of music."""
    with torch.device("meta"):
        network = Mert2Encoder(config, sample_rate=1).network
    state = {key: _random(key, meta.shape, generator) for key, meta in network.state_dict().items()}
    bands = MelBands(sample_rate=config.sampling_rate or 24_000, bands=config.num_mel_bins, n_fft=config.n_fft)
    mean, deviation = (torch.randn(config.num_mel_bins, generator=generator, dtype=torch.float32) for _ in "ab")
    return state | {
        "feature_extractor.spectrogram.window": torch.hann_window(config.win_length, dtype=torch.float32),
        "feature_extractor.mel_scale.fb": bands.filters.contiguous(),
        "feature_extractor.mel_mean": 5 * mean - 20,
        "feature_extractor.mel_std": deviation.abs() + 13,
    }


def _muq_state(values: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights with the hub's names, without those of training."""
    config = MuqConfig.from_dict(
        values, values.get("stat", MUQ_STATISTICS), source="shape", statistics_source="shape: stat"
    )
    with torch.device("meta"):
        network = MuqEncoder(config).network
    known = {key for tensors in known_tensors(config) for key in tensors}
    return {
        hub_name(key): _random(key, meta.shape, generator)
        for key, meta in network.state_dict().items()
        if key not in known
    }


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Biases of 0, norms of 1; convolutions: He et al. 2015, arXiv:1502.01852; dense layers: a fixed 0.02."""
    if key.endswith(("bias", "running_mean")):
        return torch.zeros(shape, dtype=torch.float32)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float32)
    deviation = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 2 else 0.02
    return torch.randn(shape, generator=generator, dtype=torch.float32) * deviation
