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
from featurestore.models.checkpoints.files import CONFIG, PREPROCESSOR, SAFETENSORS
from featurestore.models.checkpoints.shapes import SHAPES
from featurestore.models.mert import MertEncoder


def save_random_checkpoint(
    folder: str | os.PathLike[str],
    *,
    shape: str | Mapping[str, Any] = "95m",
    seed: int = 0,
    do_normalize: bool = True,
) -> Path:
    """Write a checkpoint of random weights, as transformers initialises HuBERT.

    Parameters
    ----------
    folder : path
        Made if it does not exist; gets config.json, preprocessor_config.json and model.safetensors.
    shape : {"95m", "330m", "tiny"} or mapping
        A shape of `featurestore.models.checkpoints.shapes.SHAPES`, or the values of a config.json.
    seed : int
        The same seed gives the same weights.
    do_normalize : bool
        Whether the model brings windows to zero mean and unit variance.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SettingError
        If there is no such shape.
    CheckpointError
        If the values of the mapping are no config.json of this network.

    Examples
    --------
    >>> from featurestore.models import save_random_checkpoint
    >>> folder = save_random_checkpoint("random", shape="tiny", seed=1)
    >>> load_model(folder).layers
    3
    """
    from safetensors.torch import save_file

    if isinstance(shape, str) and shape not in SHAPES:
        raise SettingError(f"shape must be one of {', '.join(SHAPES)} or a mapping, not {shape!r}")
    values = dict(SHAPES[shape] if isinstance(shape, str) else shape)
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = MertConfig.from_dict(values, source="shape")
    rate = config.sample_rate or 24_000
    (path / CONFIG).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    preprocessor = {
        "do_normalize": do_normalize,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_value": 0,
        "sampling_rate": rate,
    }
    (path / PREPROCESSOR).write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    save_file(_random_state(config, seed), path / SAFETENSORS, metadata={"format": "pt"})
    return path


def _random_state(config: MertConfig, seed: int) -> dict[str, Tensor]:
    """Weights as transformers' HubertPreTrainedModel initialises them, with the hub's names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        network = MertEncoder(config, sample_rate=1, do_normalize=False)
    state: dict[str, Tensor] = {
        "masked_spec_embed": torch.rand(config.hidden_size, generator=generator, dtype=torch.float32),
    }
    for key, meta in network.state_dict().items():
        if key.endswith("bias"):
            value = torch.zeros(meta.shape, dtype=torch.float32)
        elif "layer_norm" in key:
            value = torch.ones(meta.shape, dtype=torch.float32)
        else:
            # Convolutions: He et al. 2015, arXiv:1502.01852; dense layers: a fixed 0.02.
            deviation = math.sqrt(2 / meta[0].numel()) if meta.ndim == 3 else 0.02
            value = torch.randn(meta.shape, generator=generator, dtype=torch.float32) * deviation
        if key == "encoder.pos_conv_embed.conv.weight":
            state[f"{key}_v"] = value
            state[f"{key}_g"] = torch.linalg.vector_norm(value, dim=(0, 1), keepdim=True)
        else:
            state[key] = value
    return state
