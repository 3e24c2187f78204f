"""What the extractor needs of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self

import torch
from torch import Tensor


class Encoder(Protocol):
    """A network from mono audio to a sequence of hidden states.

    Anything with these attributes and methods can be given to `featurestore.extract.FeatureExtractor`.

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
        """Frames of a window of `n_samples` samples."""
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
