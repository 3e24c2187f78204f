"""What the extractor needs of a model."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from featurestore.errors import ModelError, SettingError

_ATTRIBUTES = (
    *("name", "revision", "weights_sha256", "sample_rate", "layers", "dim", "do_normalize", "min_samples"),
    *("frames", "states", "hidden_states", "to"),
)
_TYPES = {
    "name": (str, "a name"),
    "revision": (str | None, "a commit or None"),
    "weights_sha256": (str | None, "64 hex digits or None"),
    "do_normalize": (bool, "True or False"),
}

CONTEXT_SECONDS = 5.0
"""Length of the windows that MERT v0 and v1 were trained with; taken for a model that does not say its own."""


class Encoder(Protocol):
    """A network from mono audio to a sequence of hidden states, all of one frame rate and one width.

    Anything with these attributes and methods can be given to `featurestore.FeatureExtractor` and to
    `featurestore.build`; `featurestore.models.check_encoder` finds out whether it keeps the rules.

    Attributes
    ----------
    name : str
        Hub name or folder, as given.
    revision : str or None
        Commit of the hub's repository.
    weights_sha256 : str or None
        SHA-256 of the weights; identifies the model in the spec of a store.
    sample_rate : int
        Hz, of the audio that the model hears.
    layers : int
        Transformer layers; there is one hidden state more, state 0 being the input of the first layer.
    dim : int
        Size of the feature axis.
    do_normalize : bool
        Whether the model brings each window to zero mean and unit variance.
    min_samples : int
        Shortest window that gives a frame.

    Examples
    --------
    >>> import torch
    >>> encoder = load_model("logmel")
    >>> encoder.name, encoder.layers, encoder.dim, encoder.frames(5 * 24_000)
    ('logmel', 2, 168, 374)
    >>> [tuple(state.shape) for state in encoder.states(torch.zeros(1, 24_000), last=1)]
    [(1, 74, 168), (1, 74, 168)]
    """

    name: str
    revision: str | None
    weights_sha256: str | None
    sample_rate: int
    layers: int
    dim: int
    do_normalize: bool
    min_samples: int

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples, never fewer than of a shorter one.

        Raises
        ------
        SettingError
            If the model cannot hear so long a window.
        """
        ...

    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Hidden states 0 to `last` (all if None), one after the other as they are computed.

        Parameters
        ----------
        wave : Tensor of float32, shape (windows, samples)
            Mono at `sample_rate`, as decoded; on the model's device.
        last : int, optional
            Last state that is wanted; what lies beyond it is not computed.

        Yields
        ------
        Tensor, shape (windows, frames, dim)
        """
        ...

    def hidden_states(self, wave: Tensor) -> Tensor:
        """All hidden states, shape (windows, layers + 1, frames, dim)."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same model on another device."""
        ...


class EncoderModule(nn.Module):
    """A network that is an `Encoder`: what identifies it, and all hidden states at once."""

    sample_rate: int
    layers: int
    dim: int
    do_normalize: bool
    min_samples: int

    def __init__(self, *, name: str = "", revision: str | None = None, weights_sha256: str | None = None) -> None:
        super().__init__()
        self.name, self.revision, self.weights_sha256 = name, revision, weights_sha256

    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield hidden states 0 to `last`, as `Encoder.states` says."""
        raise NotImplementedError

    def hidden_states(self, wave: Tensor) -> Tensor:
        """Compute all hidden states, shape (windows, layers + 1, frames, dim), of `wave`, as for `states`.

        Examples
        --------
        >>> import torch
        >>> load_model("mini").hidden_states(torch.zeros(2, 24_000)).shape
        torch.Size([2, 5, 74, 192])
        """
        return torch.stack(list(self.states(wave)), dim=1)

    forward = hidden_states


def require_encoder(model: Any) -> None:
    """Raise SettingError for what lacks an attribute of `Encoder`, ModelError for one that cannot be."""
    if missing := [name for name in _ATTRIBUTES if not hasattr(model, name)]:
        raise SettingError(
            f"model must be the name of a model, a folder, or an encoder; the {type(model).__name__} that was "
            f"given has no {', '.join(missing)}"
        )
    for name, (kind, what) in _TYPES.items():
        value = getattr(model, name)
        if not isinstance(value, kind):
            raise broken_rule(model, name, f"it is {value!r}, not {what}")
    if not model.name:
        raise broken_rule(model, "name", "it is empty, but a store's spec names the model by it")
    sha256 = model.weights_sha256
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise broken_rule(model, "weights_sha256", f"it is {sha256!r}, not 64 hex digits or None")
    for name, least in (("sample_rate", 1), ("layers", 0), ("dim", 1), ("min_samples", 1)):
        value = getattr(model, name)
        if type(value) is not int or value < least:
            raise broken_rule(model, name, f"it is {value!r}, not a whole number from {least}")


def context_seconds(model: Encoder) -> float:
    """Length of the windows that a model was trained with: its `context_seconds`, or 5 if it says nothing.

    ModelError is raised if it is no number above 0.
    """
    value = getattr(model, "context_seconds", CONTEXT_SECONDS)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise broken_rule(model, "context_seconds", f"it is {value!r}, not a number of seconds above 0")
    return float(value)


def longest_window(model: Encoder) -> int | None:
    """Most samples that a model hears at once, its `max_samples`; None if there is no limit.

    ModelError is raised if it is no whole number of at least `min_samples`.
    """
    value: int | None = getattr(model, "max_samples", None)
    if value is not None and (type(value) is not int or value < model.min_samples):
        raise broken_rule(model, "max_samples", f"it is {value!r}, not a whole number from {model.min_samples}")
    return value


def window_bytes(model: Encoder, n_samples: int) -> int:
    """Memory that a window takes in a model, about: spectra or convolutions, and what is inside a layer."""
    # 64 bytes a sample: spectra, or pieces of convolutions; sixteen states: a feed-forward and an attention.
    return 64 * n_samples + 4 * 16 * model.frames(n_samples) * model.dim


def broken_rule(model: Encoder, rule: str, found: str) -> ModelError:
    """The error for an encoder that does not keep a rule: names both, and what was found."""
    return ModelError(f"{model.name or 'the encoder'} breaks the rule of `{rule}`: {found}")


def check_state(model: Encoder, number: int, state: Tensor, *, windows: int, n_samples: int) -> None:
    """Raise ModelError unless a state is floating point and has the shape that the model promises."""
    if not isinstance(state, Tensor) or not state.is_floating_point():
        kind = state.dtype if isinstance(state, Tensor) else type(state).__name__
        raise broken_rule(model, "states", f"state {number} is {kind}, not a Tensor of floating point")
    found, wanted = tuple(state.shape), (windows, model.frames(n_samples), model.dim)
    if found != wanted:
        axes = zip(("states", "frames", "dim"), found, wanted, strict=False)
        axis = next((rule for rule, one, other in axes if one != other), "states")
        raise broken_rule(
            model,
            axis,
            f"state {number} of {n_samples} samples has shape {found}, not {wanted}: all states of an encoder "
            f"have the frames that `frames` says and the width `dim`",
        )


def frame_rate(model: Encoder, n_samples: int) -> float | None:
    """Frames a second, from where `frames` goes up; None if windows of `n_samples` have but one frame.

    SettingError is raised if the model cannot hear so long a window.
    """
    first = _next_rise(model, model.min_samples, n_samples)
    if first is None:
        return None
    # The first frame may need more samples than lie between two frames: the next rise tells the distance.
    begin, end = model.min_samples, first
    if (second := _next_rise(model, first, n_samples)) is not None:
        begin, end = first, second
    return (model.frames(end) - model.frames(begin)) * model.sample_rate / (end - begin)


def _next_rise(model: Encoder, n_samples: int, most: int) -> int | None:
    """The shortest window that has more frames than one of `n_samples`; None if one of `most` has not."""
    frames = model.frames(n_samples)
    if model.frames(most) == frames:
        return None
    return n_samples + bisect_right(range(n_samples, most), frames, key=model.frames)


def check_float32(model: Encoder) -> None:
    """Raise ModelError if a network's first weights are not float32: half precision begins with it too."""
    dtype = next((x.dtype for x in cast(nn.Module, model).parameters()), torch.float32)
    if dtype != torch.float32:
        raise ModelError(
            f"the weights of {model.name} are {dtype}: give the model in float32, as load_model loads it "
            f"(model.float() makes it so); precision chooses the arithmetic"
        )


def check_call(model: Encoder, wave: Tensor, last: int | None) -> int:
    """Return the last state that is wanted of windows, all if `last` is None; raise as `Encoder.states` says."""
    check_float32(model)
    last = model.layers if last is None else last
    if not 0 <= last <= model.layers:
        raise SettingError(f"{model.name} has hidden states 0 to {model.layers}, not {last}")
    if wave.ndim != 2 or wave.shape[1] < model.min_samples:
        raise SettingError(
            f"wave must be [windows, samples] of at least {model.min_samples} samples, not of shape "
            f"{tuple(wave.shape)}"
        )
    return last


def check_longest(n_samples: int, max_samples: int, sample_rate: int) -> None:
    """Raise SettingError if a window of `n_samples` is longer than a model hears."""
    if n_samples > max_samples:
        raise SettingError(
            f"this model hears {max_samples / sample_rate:g} s at most, and a window of {n_samples} samples has "
            f"{n_samples / sample_rate:g} s: choose a shorter `segment_duration`"
        )
