"""Networks of transformers behind the `Encoder` protocol: state by state, or as one vector (CLAP)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import CheckpointError
from featurestore.models.encoder import EncoderModule, check_call
from featurestore.models.frontends import Frontend
from featurestore.models.kernels.convolutions import EXACT, GroupedConv1d

_EXACT_FRONT_ENDS = ("cpu",)
"""Where all before the transformer layers is in float32; elsewhere only the first convolution is."""


class _Reached(Exception):  # noqa: N818 (no error)
    """Carries the call of the first transformer layer out of the network's own forward."""

    def __init__(self, state: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.state, self.args_after, self.kwargs = state, args, kwargs


class _Stop(nn.Module):
    """Stands where the transformer layers were."""

    def forward(self, state: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        raise _Reached(state, args, kwargs)


class _Forgetful(nn.Module):
    """Calls copies of a module that keeps what it has computed for a window: another thread has another one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, state: Tensor) -> Any:
        module = copy(self._module)
        module._buffers = dict(module._buffers)
        return module(state)


class _OfTransformers(EncoderModule):
    """A network of transformers behind a front end: what all encoders of this module have."""

    def __init__(self, network: nn.Module, *, frontend: Frontend, **identity: Any) -> None:
        super().__init__(**identity)
        self.sample_rate, self.do_normalize = frontend.sample_rate, frontend.do_normalize
        self.min_samples, self.context_seconds = frontend.min_samples, frontend.context_seconds
        self.max_samples = frontend.max_samples
        self._frontend, self._network = frontend, network
        self.eval().requires_grad_(False)

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples; 0 if it is shorter than `min_samples`.

        Raises
        ------
        SettingError
            If the model cannot hear so long a window.
        """
        return self._frontend.frames(n_samples)

    def _heard(self, wave: Tensor) -> Tensor:
        # Always in full precision: in half, quiet audio that is not normalised would lose its bits here.
        with torch.autocast(wave.device.type, enabled=False):
            heard: Tensor = self._frontend(wave.float())
            return heard


class TransformersEncoder(_OfTransformers):
    """An encoder of transformer layers of one width and rate; an `Encoder`.

    The layers are taken out of the network and called one by one, with the arguments of the network's own first
    call, so that each state can be used before the next one is computed. `final_norm` says whether the last state
    passes the network's last norm; None leaves it to `do_stable_layer_norm`.
    """

    def __init__(self, network: nn.Module, *, final_norm: bool | None, **settings: Any) -> None:
        super().__init__(network, **settings)
        transformer: Any = getattr(network, "encoder", network)
        config: Any = network.config
        attribute = "layers" if hasattr(transformer, "layers") else "layer"
        self._layers: nn.ModuleList = getattr(transformer, attribute)
        setattr(transformer, attribute, nn.ModuleList([_Stop()]))
        positions = getattr(transformer, "embed_positions", None)
        if positions is not None and not isinstance(positions, nn.Embedding):  # rotary or relative ones
            transformer.embed_positions = _Forgetful(positions)
        for module in self._layers.modules():
            if type(module) is nn.Conv1d and module.groups > 1:
                module.__class__ = GroupedConv1d  # which has the same attributes
        if (first := next((x for x in network.modules() if type(x) in EXACT), None)) is not None:
            first.__class__ = EXACT[type(first)]
        self.layers, self.dim = len(self._layers), int(config.hidden_size)
        # Networks whose layers normalise what they read, not what they write, end in a norm of their own.
        if final_norm is None:
            final_norm = getattr(config, "do_stable_layer_norm", False)
        last_norm: Any = getattr(transformer, "layer_norm", getattr(network, "layernorm", None))
        self._last_norm: nn.Module | None = last_norm if final_norm else None

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield hidden states 0 to `last`, as `Encoder.states` says.

        State 0 is the input of the first transformer layer, state i the output of layer i. The last one has
        passed the final layer norm where the network has one (pre-LN networks, Whisper).
        """
        last = check_call(self, wave, last)
        frames = self.frames(wave.shape[1])
        x, args, kwargs = self._first_call(wave)
        yield self._frontend.of_window(x, frames)
        for number, layer in enumerate(self._layers[:last], 1):
            output = layer(x, *args, **kwargs)
            x = output[0] if isinstance(output, tuple) else output
            if kwargs.get("position_bias", x) is None:
                kwargs["position_bias"] = output[1]  # WavLM's first layer makes it for all
            if number == self.layers and self._last_norm is not None:
                x = self._last_norm(x)
            yield self._frontend.of_window(x, frames)

    def _first_call(self, wave: Tensor) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
        """What the network gives to its first transformer layer."""
        heard = self._heard(wave)
        on_cpu = wave.device.type in _EXACT_FRONT_ENDS
        with torch.autocast(wave.device.type, enabled=False) if on_cpu else nullcontext():
            try:
                self._network(heard)
            except _Reached as call:
                # The residual stream that starts here outgrows half.
                return call.state.float(), call.args_after, call.kwargs
        raise CheckpointError(f"{self.name} has no transformer layer")


class ClapEncoder(_OfTransformers):
    """CLAP's audio tower; an `Encoder` of one state, the projection, with one frame for each window.

    The stages of its Swin transformer are no states: each has half the rate and twice the width of the one before.
    """

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        super().__init__(network, **settings)
        config: Any = network.config
        self.layers, self.dim = 0, int(config.projection_dim)

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield state 0, shape (windows, 1, dim): what is compared with texts, not yet brought to a norm of 1."""
        check_call(self, wave, last)
        self.frames(wave.shape[1])
        heard = self._heard(wave)
        # Only audio beyond the longest window would be heard in pieces that are fused.
        longer = torch.zeros(len(wave), 1, dtype=torch.bool, device=wave.device)
        yield self._network(input_features=heard, is_longer=longer).audio_embeds[:, None]
