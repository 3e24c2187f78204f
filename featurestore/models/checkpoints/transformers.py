"""Encoders of transformers behind the `Encoder` protocol: HuBERT, wav2vec 2.0, WavLM, data2vec-audio, Whisper.

The classes are built from settings that `families` has checked and filled with weights that `checkpoint` has read:
nothing is fetched, and no code but that of the installed transformers runs.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import CheckpointError, MissingDependencyError
from featurestore.models.checkpoints.config import audio_settings
from featurestore.models.checkpoints.families import FAMILIES, Family
from featurestore.models.checkpoints.files import (
    CONFIG,
    find_weights,
    read_json,
    read_preprocessor,
    weights_sha256,
)
from featurestore.models.checkpoints.native import check_tensors, read_weights
from featurestore.models.encoder import check_float32, check_wave, checked_last
from featurestore.models.frontends import Frontend, LogMel, Samples
from featurestore.models.warning_filters import suppress_warnings

_NEW_NAMES = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""How torch's newer weight norm calls magnitude and direction; transformers uses the one that torch has."""

_COUNTER = "num_batches_tracked"
"""Tensor of batch norm that is a whole number and of no use here; checkpoints may lack it."""


class _Reached(Exception):  # noqa: N818 (no error)
    """Carries the call of the first transformer layer out of the network's own forward."""

    def __init__(self, state: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.state, self.args_after, self.kwargs = state, args, kwargs


class _Stop(nn.Module):
    """Stands where the transformer layers were."""

    def forward(self, state: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise _Reached(state, args, kwargs)


class TransformersEncoder(nn.Module):
    """An encoder network of transformers; an `Encoder`.

    Its transformer layers are taken out of the network and called one by one, with the arguments of the
    network's own first call, so that each state can be used before the next one is computed.

    Parameters
    ----------
    network : Module
        Of a class of `FAMILIES`, with its weights.
    frontend : Module
        From samples to the network's input.
    name : str
        Hub name or folder, as given.
    revision : str, optional
        Commit of the hub's repository.
    weights_sha256 : str, optional
        SHA-256 of the file of weights.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        frontend: Frontend,
        name: str = "",
        revision: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.revision, self.weights_sha256 = name, revision, weights_sha256
        self.sample_rate, self.do_normalize = frontend.sample_rate, frontend.do_normalize
        self.min_samples, self.context_seconds = frontend.min_samples, frontend.context_seconds
        self.max_samples = frontend.max_samples
        self._frontend, self._network = frontend, network
        transformer: Any = getattr(network, "encoder", network)
        config: Any = network.config
        self._layers: nn.ModuleList = transformer.layers
        transformer.layers = nn.ModuleList([_Stop()])
        self.layers, self.dim = len(self._layers), int(config.hidden_size)
        # Networks whose layers normalise what they read, not what they write, end in a norm of their own.
        pre_norm = getattr(config, "do_stable_layer_norm", transformer is network)
        self._last_norm: nn.Module | None = transformer.layer_norm if pre_norm else None
        self.eval().requires_grad_(False)

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples; 0 if it is shorter than `min_samples`.

        Raises
        ------
        SettingError
            If the model cannot hear so long a window.
        """
        return self._frontend.frames(n_samples)

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Hidden states 0 to `last`, one after the other as they are computed.

        State 0 is the input of the first transformer layer, state i the output of layer i. The last one has
        passed the final layer norm where the network has one (pre-LN networks, Whisper).

        Parameters
        ----------
        wave : Tensor of float32, shape (windows, samples)
            Mono at `sample_rate`, as decoded; at least `min_samples` samples.
        last : int, optional
            Last state that is wanted, by default `layers`; what lies beyond it is not computed.

        Yields
        ------
        Tensor of float32, shape (windows, frames, dim)

        Raises
        ------
        ModelError
            If the weights are not float32.
        SettingError
            If `wave` has another shape or length than the model can hear, or there is no state `last`.
        """
        check_float32(self, self.name)
        last = checked_last(self, last)
        check_wave(wave, self.min_samples)
        frames = self.frames(wave.shape[1])
        x, args, kwargs = self._first_call(wave)
        yield x[:, :frames]
        for number, layer in enumerate(self._layers[:last], 1):
            output = layer(x, *args, **kwargs)
            x = output[0] if isinstance(output, tuple) else output
            if kwargs.get("position_bias", x) is None:
                kwargs["position_bias"] = output[1]  # WavLM's first layer makes it for all
            if number == self.layers and self._last_norm is not None:
                x = self._last_norm(x)
            yield x[:, :frames]

    def _first_call(self, wave: Tensor) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """What the network gives to its first transformer layer."""
        # Always in full precision: in half, quiet audio that is not normalised would lose its bits here.
        with torch.autocast(wave.device.type, enabled=False):
            heard = self._frontend(wave.float())
            try:
                self._network(heard)
            except _Reached as call:
                return call.state, call.args_after, call.kwargs
        raise CheckpointError(f"{self.name} has no transformer layer")

    def hidden_states(self, wave: Tensor) -> Tensor:
        """All hidden states.

        Parameters
        ----------
        wave : Tensor of float32, shape (windows, samples)
            As for `states`.

        Returns
        -------
        Tensor of float32, shape (windows, layers + 1, frames, dim)
        """
        return torch.stack(list(self.states(wave)), dim=1)

    forward = hidden_states


def load_transformers_checkpoint(
    folder: str | os.PathLike[str], *, name: str | None = None, revision: str | None = None
) -> TransformersEncoder:
    """Load a checkpoint of one of `FAMILIES` from a local folder.

    Heads, decoders, adapters and what only training uses are left out; every other tensor must fit.

    Parameters
    ----------
    folder : path
        Holds the files that `featurestore.models.checkpoints.native.load_checkpoint` reads.
    name : str, optional
        Name of the model, by default the folder as given.
    revision : str, optional
        Commit of the hub's repository.

    Returns
    -------
    TransformersEncoder
        In float32, on the CPU.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged or unsafe, or is not a network of these families; names what is wrong.
    MissingDependencyError
        If transformers is not installed.
    """
    path = Path(folder)
    values = read_json(path / CONFIG)
    family = FAMILIES[values["model_type"]]
    settings = family.settings(values, source=str(path / CONFIG))
    preprocessor, source = read_preprocessor(path)
    files = find_weights(path)
    network = _empty_network(family, settings, source=str(path / CONFIG))
    state = _fitting(read_weights(files), network, family, source=str(path))
    network.load_state_dict(state, strict=True, assign=True)
    with suppress_warnings("transformers"):
        frontend = _frontend(network.config, preprocessor, source=source)
    return TransformersEncoder(
        network,
        frontend=frontend,
        name=os.fspath(folder) if name is None else name,
        revision=revision,
        weights_sha256=weights_sha256(files),
    )


def _empty_network(family: Family, settings: Mapping[str, Any], *, source: str) -> nn.Module:
    """The network without weights: nothing is allocated before they have shown that they are of this size."""
    with suppress_warnings("transformers"):
        try:
            module = importlib.import_module(f"transformers.models.{family.module}")
        except ImportError as error:
            raise MissingDependencyError(
                f"{source} is of a network that needs transformers: pip install 'featurestore[extract]' ({error})"
            ) from error
        try:
            with torch.device("meta"):
                network: nn.Module = getattr(module, family.network)(getattr(module, family.config)(**settings))
        except Exception as error:  # whatever impossible settings make transformers raise
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{source} does not describe a {family.network}: {reason}") from error
    return network


def _frontend(config: Any, preprocessor: Mapping[str, Any], *, source: str) -> Frontend:
    if hasattr(config, "num_mel_bins"):
        return LogMel.from_dict(
            preprocessor, mels=config.num_mel_bins, positions=config.max_source_positions, source=source
        )
    rate, do_normalize = audio_settings(preprocessor, None, source=source)
    return Samples(
        kernels=tuple(config.conv_kernel),
        strides=tuple(config.conv_stride),
        sample_rate=rate,
        do_normalize=do_normalize,
    )


def _fitting(state: Mapping[str, Tensor], network: nn.Module, family: Family, *, source: str) -> dict[str, Tensor]:
    """Those tensors that are the network's, by its names, checked strictly."""
    own = network.state_dict()
    prefix = next((x for x in family.prefixes if any(key.startswith(x) for key in state)), "")
    given: dict[str, Tensor] = {}
    for key, value in state.items():
        inner = key.removeprefix(prefix)
        if key.startswith(prefix) and not inner.startswith(("masked_spec_embed", "adapter.")):
            given[_own_name(inner, own)] = value
    wanted = {key: tuple(value.shape) for key, value in own.items() if not key.endswith(_COUNTER)}
    counters = {key: torch.zeros((), dtype=torch.long) for key in own.keys() - wanted.keys()}
    given = {key: value for key, value in given.items() if key not in counters}
    check_tensors(given, wanted, source=source)
    return {key: value.detach().float().contiguous() for key, value in given.items()} | counters


def _own_name(key: str, own: Mapping[str, Tensor]) -> str:
    """The network's name of a tensor: the two of weight norm have changed with torch."""
    for old, new in _NEW_NAMES.items():
        for one, other in ((old, new), (new, old)):
            if key not in own and key.endswith(f".{one}") and (renamed := key.removesuffix(one) + other) in own:
                return renamed
    return key
