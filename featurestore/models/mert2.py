"""MERT-v2 in plain torch: mel spectra, a ConvNeXt V2 subsampler and Conformer blocks, with the hub's key names.

ConvNeXt V2: Woo et al. 2023, arXiv:2301.00808.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from featurestore.models.checkpoints.config_mert2 import STRIDES, Mert2Config
from featurestore.models.conformer import (
    Block,
    BlockShape,
    ConformerEncoder,
    ConformerNetwork,
    GeluInPlace,
    Transpose,
    rotary_frequencies,
)
from featurestore.models.frontends import StandardMel
from featurestore.models.kernels.convolutions import GroupedConv1d

_RESPONSE_EPS = 1e-6
"""Added to the mean response of a frame's channels."""

_ROWS = 512
"""Frames whose squares are there at a time."""


class _GlobalResponseNorm(nn.Module):
    """Channels that respond more than others, over all frames of a window, are raised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, channels))
        self.bias = nn.Parameter(torch.empty(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # squares of a whole window outgrow half
        # Ten times as fast on a CPU as `vector_norm` over an axis that is not the last; in pieces of a few MB.
        squares = [part.square().sum(dim=1, keepdim=True) for part in torch.split(x, _ROWS, dim=1)]
        response = torch.stack(squares).sum(dim=0).sqrt()
        relative = response / (response.mean(dim=-1, keepdim=True) + _RESPONSE_EPS)
        return x.mul_(self.weight * relative + 1).add_(self.bias)  # nobody else has it


class _ConvNextLayer(nn.Module):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.depthwise_block = nn.Sequential(
            Transpose(), GroupedConv1d(channels, channels, 7, padding=3, groups=channels), Transpose()
        )
        self.pointwise_block = nn.Sequential(
            nn.LayerNorm(channels, eps=eps),
            nn.Linear(channels, 4 * channels),
            GeluInPlace(),
            _GlobalResponseNorm(4 * channels),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.pointwise_block(self.depthwise_block(x))
        return out


class _Stage(nn.Module):
    """ConvNeXt layers of one width and rate; an odd last frame is dropped where the rate is halved."""

    def __init__(self, width: int, channels: int, *, stride: int, depth: int, eps: float) -> None:
        super().__init__()
        self.resampling_layer: nn.Module | None = None
        if (width, stride) != (channels, 1):
            self.resampling_layer = nn.Sequential(
                nn.LayerNorm(width, eps=eps),
                Transpose(),
                nn.Conv1d(width, channels, 2, stride),
                Transpose(),
            )
        self.convnext_layers = nn.ModuleList(_ConvNextLayer(channels, eps) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        if self.resampling_layer is not None:
            # Back to full precision: the residual stream that starts here outgrows half.
            x = self.resampling_layer(x).float()
        for layer in self.convnext_layers:
            x = layer(x)
        return x


class _Network(ConformerNetwork):
    """What a checkpoint holds, by its names."""

    def __init__(self, config: Mert2Config) -> None:
        super().__init__()
        self.feature_extractor = StandardMel(
            bands=config.num_mel_bins, n_fft=config.n_fft, win_length=config.win_length, hop=config.hop_length
        )
        channels, eps = config.subsampling_channels, config.subsampling_layer_norm_eps
        stages = zip((channels[0], *channels), channels, STRIDES, config.subsampling_depths, strict=False)
        self.subsampling_module = nn.ModuleList(
            _Stage(width, out, stride=stride, depth=depth, eps=eps) for width, out, stride, depth in stages
        )
        shape = BlockShape(
            width=config.hidden_size,
            inner=config.intermediate_size,
            heads=config.num_attention_heads,
            kernel=config.conv_depthwise_kernel_size,
            eps=config.layer_norm_eps,
        )
        self.layers = nn.ModuleList(Block(shape) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.Identity()
        self._head_size, self._base = shape.width // shape.heads, config.rotary_embedding_base

    def frequencies(self, device: torch.device) -> Tensor:
        return rotary_frequencies(self._head_size, self._base, device)


class Mert2Encoder(ConformerEncoder):
    """MERT-v2 of any shape; an `Encoder`.

    Parameters
    ----------
    config : Mert2Config
        Shape of the network.
    sample_rate : int
        Hz.
    name : str
        Hub name or folder, as given.
    revision : str, optional
        Commit of the hub's repository.

    Attributes
    ----------
    network : Module
        Its state dict has the names of the hub's checkpoints.
    context_seconds : float
        Longest window that the network was trained with.

    Examples
    --------
    >>> from featurestore.models import Mert2Encoder, save_random_checkpoint
    >>> model = load_model(save_random_checkpoint("random", shape="mert2-tiny"))
    >>> isinstance(model, Mert2Encoder), model.layers, model.context_seconds
    (True, 3, 30.0)
    """

    def __init__(
        self, config: Mert2Config, *, sample_rate: int, name: str = "", revision: str | None = None
    ) -> None:
        super().__init__(
            _Network(config),
            dim=config.hidden_size,
            # A window is extended by its reflection, half a spectrum long, and has to give one frame.
            min_samples=max(config.n_fft // 2 + 1, math.prod(STRIDES) * config.hop_length),
            context_seconds=config.context_seconds,
            sample_rate=sample_rate,
            name=name,
            revision=revision,
        )
        self.config = config

    def _frames(self, n_samples: int) -> int:
        return n_samples // self.config.hop_length // math.prod(STRIDES)
