"""Checkpoints of the networks that transformers has: those of `families`.

The classes are built from settings that `families` has checked and filled with weights that `checkpoint` has read:
nothing is fetched, and no code but that of the installed transformers runs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featurestore.errors import CheckpointError, MissingDependencyError
from featurestore.models.checkpoints.config import audio_settings
from featurestore.models.checkpoints.families import FAMILIES, Family
from featurestore.models.checkpoints.files import CONFIG, find_weights, read_json, read_preprocessor
from featurestore.models.checkpoints.native import check_tensors, fill, single
from featurestore.models.filterbanks import ClapMel, KaldiBanks, PatchBanks
from featurestore.models.frontends import Frontend, LogMel, Samples
from featurestore.models.transformers_encoder import ClapEncoder, TransformersEncoder
from featurestore.models.warning_filters import suppress_warnings

_NEW_NAMES = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""How torch's newer weight norm calls magnitude and direction; transformers uses the one that torch has."""

_COUNTER, _INDEX = "num_batches_tracked", "relative_position_index"
"""Tensors of whole numbers, of batch norm and of windowed attention: made here, whatever a checkpoint says."""


_FRONTENDS: Mapping[str, type[LogMel | KaldiBanks | PatchBanks | ClapMel]] = {
    "whisper": LogMel,
    "wav2vec2-bert": KaldiBanks,
    "audio-spectrogram-transformer": PatchBanks,
    "clap": ClapMel,
    "clap_audio_model": ClapMel,
}
"""By model_type, of those networks that do not hear samples."""


def load_transformers_checkpoint(
    folder: Path, *, name: str, revision: str | None = None
) -> TransformersEncoder | ClapEncoder:
    """Load a checkpoint of one of the `FAMILIES` from a local folder, in float32, on the CPU.

    Heads, decoders, adapters and what only training uses are left out; every other tensor must fit. Parameters and
    errors are those of `featurestore.models.checkpoints.native.load_checkpoint`; MissingDependencyError is raised
    if transformers is not installed.
    """
    config, values = str(folder / CONFIG), read_json(folder / CONFIG)
    kind = values["model_type"]
    family = FAMILIES[kind]
    settings = family.settings(values, source=config)
    preprocessor, source = read_preprocessor(folder)
    files = find_weights(folder)
    network = empty_network(family, settings, source=config)
    digest = fill(network, files, partial(_fitting, family), source=str(folder))
    identity = {"name": name, "revision": revision, "weights_sha256": digest}
    return behind_frontend(network, kind, preprocessor, source=source, **identity)


class _LinspaceOnCpu(TorchFunctionMode):
    """Keeps `torch.linspace` off the meta device: CLAP reads the numbers of one in transformers before 5."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **device, **{key: x for key, x in (kwargs or {}).items() if key not in device})


def behind_frontend(
    network: Any, kind: str, preprocessor: Mapping[str, Any], *, source: str, **identity: str | None
) -> TransformersEncoder | ClapEncoder:
    """The encoder of a network: with the front end that its model_type and its preprocessor_config.json ask for.

    CheckpointError is raised if a value of that file, which errors call `source`, is missing or impossible.
    """
    with suppress_warnings("transformers"):
        frontend = _frontend(kind, network.config, preprocessor, source=source)
        _fill_positions(network)
    if isinstance(frontend, ClapMel):
        return ClapEncoder(network, frontend=frontend, **identity)
    return TransformersEncoder(network, final_norm=FAMILIES[kind].final_norm, frontend=frontend, **identity)


def _fill_positions(network: nn.Module) -> None:
    """Make again the positions that have no weights: their tables are in no checkpoint, and empty until now."""
    encoder: Any = getattr(network, "encoder", None)
    positions = getattr(encoder, "embed_positions", None)
    if positions is not None and not list(positions.parameters()):
        encoder.embed_positions = type(positions)(network.config)


def empty_network(family: Family, settings: Mapping[str, Any], *, source: str) -> nn.Module:
    """The network without weights: nothing is allocated before they have shown that they are of this size.

    CheckpointError is raised if transformers makes no network of the settings, MissingDependencyError if it is not
    installed.
    """
    with suppress_warnings("transformers"):
        try:
            module = importlib.import_module(f"transformers.models.{family.module}")
        except ImportError as error:
            raise MissingDependencyError(
                f"{source} is of a network that needs transformers: pip install 'featurestore[extract]' ({error})"
            ) from error
        try:
            with torch.device("meta"), _LinspaceOnCpu():
                network: nn.Module = getattr(module, family.network)(getattr(module, family.config)(**settings))
        except Exception as error:  # whatever impossible settings make transformers raise
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{source} does not describe a {family.network}: {reason}") from error
    return network


def _frontend(kind: str, config: Any, preprocessor: Mapping[str, Any], *, source: str) -> Frontend:
    if kind in _FRONTENDS:
        return _FRONTENDS[kind](preprocessor, config, source=source)
    rate, do_normalize = audio_settings(preprocessor, None, source=source)
    return Samples(
        kernels=tuple(config.conv_kernel),
        strides=tuple(config.conv_stride),
        sample_rate=rate,
        do_normalize=do_normalize,
    )


def _fitting(
    family: Family, state: Mapping[str, Tensor], own: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, Tensor]:
    """Those tensors that are the network's, by its names, checked strictly."""
    prefix = next((x for x in family.prefixes if any(key.startswith(x) for key in state)), "")
    given: dict[str, Tensor] = {}
    for key, value in state.items():
        inner = key.removeprefix(prefix)
        if key.startswith(prefix) and (inner in own or not inner.startswith(family.ignored)):
            given[_own_name(inner, own, family)] = value
    given = {key: value for key, value in given.items() if not key.endswith((_COUNTER, _INDEX))}
    wanted = {key: shape for key, shape in own.items() if not key.endswith((_COUNTER, _INDEX))}
    check_tensors(given, wanted, source=source)
    made = {
        key: _position_index(math.isqrt(own[key][0]))
        if key.endswith(_INDEX)
        else torch.zeros((), dtype=torch.long)
        for key in own.keys() - wanted.keys()
    }
    return single(given) | made


def _position_index(side: int) -> Tensor:
    """Row of the table of biases for each pair of places of a square (Liu et al. 2021, arXiv:2103.14030)."""
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    apart = places[:, None] - places + side - 1
    return apart[..., 0] * (2 * side - 1) + apart[..., 1]


def _own_name(key: str, own: Mapping[str, Any], family: Family) -> str:
    """The network's name of a tensor: some have changed with transformers, the two of weight norm with torch."""
    renamed = key
    for old, new in family.renames:
        renamed = renamed.replace(old, new)
    if key not in own and renamed in own:
        return renamed
    for old, new in _NEW_NAMES.items():
        for one, other in ((old, new), (new, old)):
            if key not in own and key.endswith(f".{one}") and (renamed := key.removesuffix(one) + other) in own:
                return renamed
    return key
