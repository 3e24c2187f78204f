"""Checkpoints of a training: folders in the layout of the released models, with the rest of its state beside.

A checkpoint is written under another name and renamed, so one that is there is whole. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import CheckpointError, SettingError
from featurestore.models.checkpoints.files import CONFIG, PREPROCESSOR, SAFETENSORS, read_json
from featurestore.training.pretrain.network import TRAINING_TENSORS, Heads, TrainedEncoder

SCALARS = "training.json"

_PREFIX = "step-"
_POSITIONAL = "encoder.pos_conv_embed.conv."
_RELEASED = {
    f"{_POSITIONAL}parametrizations.weight.original0": f"{_POSITIONAL}weight_g",
    f"{_POSITIONAL}parametrizations.weight.original1": f"{_POSITIONAL}weight_v",
}
"""How the released checkpoints call what torch's weight norm calls otherwise."""

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW remembers of a parameter."""


@dataclass(frozen=True)
class Trained:
    """All that learns.

    Attributes
    ----------
    encoder : TrainedEncoder
    heads : Heads
    optimizer : torch.optim.Optimizer
    """

    encoder: TrainedEncoder
    heads: Heads
    optimizer: torch.optim.Optimizer

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """All parameters by name: those of the encoder as the released checkpoints have them."""
        named = [(_RELEASED.get(name, name), x) for name, x in self.encoder.encoder.named_parameters()]
        named.append(("masked_spec_embed", self.encoder.mask_embedding))
        return named + [(f"heads.{name}", x) for name, x in self.heads.named_parameters()]


def write_model(folder: Path, trained: Trained, config: Mapping[str, Any]) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors, as the released checkpoints have them."""
    encoder = trained.encoder.encoder
    _write_json(folder / CONFIG, config)
    _write_json(
        folder / PREPROCESSOR,
        {
            "do_normalize": encoder.do_normalize,
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_value": 0,
            "sampling_rate": encoder.sample_rate,
        },
    )
    state = {name: _plain(x) for name, x in trained.named() if not name.startswith("heads.")}
    _write_tensors(folder / SAFETENSORS, state)


def publish(folder: Path, write: Any) -> Path:
    """Have a folder written under another name, then rename it; one that is there is replaced.

    Raises
    ------
    SettingError
        If it cannot be written.
    """
    aside, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        for path in (aside, old):
            shutil.rmtree(path, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        _sync(aside)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise SettingError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder


def save(
    folder: Path, step: int, trained: Trained, config: Mapping[str, Any], scalars: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of a step, and remove all but the newest `keep`.

    Parameters
    ----------
    folder : Path
        Holds the checkpoints.
    step : int
        Steps that are done.
    trained : Trained
        What is written.
    config : mapping
        Values of config.json.
    scalars : mapping
        What else there is to remember, as values of JSON.
    keep : int
        How many checkpoints stay.
    """

    def write(aside: Path) -> None:
        write_model(aside, trained, config)
        tensors: dict[str, Tensor] = {}
        for name, parameter in trained.named():
            if name.startswith("heads."):
                tensors[name] = _plain(parameter)
            for kind, value in trained.optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = _plain(value)
        _write_tensors(aside / TRAINING_TENSORS, tensors)
        _write_json(aside / SCALARS, {**scalars, "step": step})

    path = publish(folder / f"{_PREFIX}{step:08d}", write)
    for old in found(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest last."""
    named = (x for x in folder.glob(f"{_PREFIX}*") if x.name.removeprefix(_PREFIX).isdecimal())
    return sorted(x for x in named if (x / SCALARS).is_file())


def read_scalars(folder: Path) -> dict[str, Any]:
    """What `save` remembered of a step.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    values = read_json(folder / SCALARS)
    if type(values.get("step")) is not int:
        raise CheckpointError(f"{folder / SCALARS} does not say the step")
    return values


@torch.no_grad()
def restore(folder: Path, trained: Trained) -> None:
    """Give weights and the optimizer's state the values of a checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint is damaged, or of another network or other heads.
    SettingError
        If its heads are for other numbers of classes.
    """
    from featurestore.models.checkpoints.native import check_tensors, read_weights

    state = {**read_weights([folder / SAFETENSORS]), **read_weights([folder / TRAINING_TENSORS])}
    for name, x in trained.named():
        if name.startswith("heads.") and name in state and state[name].shape != x.shape:
            raise SettingError(
                f"{folder}: {name} has shape {tuple(state[name].shape)}, but the labels or dictionaries ask for "
                f"{tuple(x.shape)}: they have other classes than they had. Put back what was there, or begin a "
                f"new training with another folder for the output and `model.start={str(folder)!r}`"
            )
    moments = {name: [x for x in _MOMENTS if f"{x}.{name}" in state] for name, _ in trained.named()}
    wanted = {name: tuple(x.shape) for name, x in trained.named()}
    for name, parameter in trained.named():
        # One that has not learned so far has none, and one that no longer learns needs none.
        for kind in moments[name]:
            wanted[f"{kind}.{name}"] = () if kind == "step" else tuple(parameter.shape)
    check_tensors(state, wanted, source=str(folder))
    for name, parameter in trained.named():
        parameter.copy_(state[name])
        if parameter.requires_grad and moments[name]:
            trained.optimizer.state[parameter] = {
                kind: state[f"{kind}.{name}"].to(parameter.device, copy=True) for kind in moments[name]
            }


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error
    _sync(path)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
