"""MERT-v2 in plain torch: mel spectra, a ConvNeXt V2 subsampler and Conformer blocks, with the hub's key names.

Conformer: Gulati et al. 2020, arXiv:2005.08100; ConvNeXt V2: Woo et al. 2023, arXiv:2301.00808; rotary positions:
Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.checkpoints.config_mert2 import STRIDES, Mert2Config
from featurestore.models.encoder import check_float32, check_longest, check_wave, checked_last
from featurestore.models.frontends import StandardMel
from featurestore.models.kernels.convolutions import GroupedConv1d

_RESPONSE_EPS = 1e-6
"""Added to the mean response of a frame's channels."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of rotary positions, each of float32, shape (frames, head size / 2)."""


class _Transpose(nn.Module):
    """Between (windows, frames, channels) and (windows, channels, frames)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class _GlobalResponseNorm(nn.Module):
    """Channels that respond more than others, over all frames of a window, are raised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 1, channels))
        self.bias = nn.Parameter(torch.empty(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # squares of a whole window outgrow half
        response = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        relative = response / (response.mean(dim=-1, keepdim=True) + _RESPONSE_EPS)
        return torch.addcmul(self.bias, x, self.weight * relative + 1)


class _ConvNextLayer(nn.Module):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.depthwise_block = nn.Sequential(
            _Transpose(), GroupedConv1d(channels, channels, 7, padding=3, groups=channels), _Transpose()
        )
        self.pointwise_block = nn.Sequential(
            nn.LayerNorm(channels, eps=eps),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
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
                _Transpose(),
                nn.Conv1d(width, channels, 2, stride),
                _Transpose(),
            )
        self.convnext_layers = nn.ModuleList(_ConvNextLayer(channels, eps) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        if self.resampling_layer is not None:
            # Back to full precision: the residual stream that starts here outgrows half.
            x = self.resampling_layer(x).float()
        for layer in self.convnext_layers:
            x = layer(x)
        return x


class _FeedForward(nn.Module):
    def __init__(self, config: Mert2Config) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w_2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.gelu(self.w_1(x)))
        return out


class _Attention(nn.Module):
    """Full attention with rotary positions."""

    def __init__(self, config: Mert2Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.key_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.value_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        heads = F.scaled_dot_product_attention(_rotated(query, rotation), _rotated(key, rotation), value)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn pairs of x [window, head, frame, feature], of which the second half holds one each, in float32."""
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


class _Convolution(nn.Module):
    """The convolution of a Conformer block, with a layer norm where the paper has a batch norm."""

    def __init__(self, config: Mert2Config) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.conv_depthwise_kernel_size
        self.layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.conv_block = nn.Sequential(
            _Transpose(),
            nn.Conv1d(width, 2 * width, 1, bias=False),
            nn.GLU(dim=1),
            GroupedConv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
            nn.Sequential(_Transpose(), nn.LayerNorm(width, eps=config.layer_norm_eps), _Transpose()),
            nn.GELU(),
            nn.Conv1d(width, width, 1, bias=False),
            _Transpose(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_block(self.layer_norm(x))
        return out


class _Block(nn.Module):
    """One Conformer block: half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, config: Mert2Config) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ffn1_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = _FeedForward(config)
        self.attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(config)
        self.conv_module = _Convolution(config)
        self.ffn2_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = _FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        x = x + self.attn(self.attn_layer_norm(x), rotation)
        x = x + self.conv_module(x)
        x = x + 0.5 * self.ffn2(self.ffn2_layer_norm(x))
        out: Tensor = self.final_layer_norm(x)
        return out


class _Network(nn.Module):
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
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))


class Mert2Encoder(nn.Module):
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
    weights_sha256 : str, optional
        SHA-256 of the file of weights.

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
        self,
        config: Mert2Config,
        *,
        sample_rate: int,
        name: str = "",
        revision: str | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.name, self.revision, self.weights_sha256 = name, revision, weights_sha256
        self.sample_rate, self.do_normalize = sample_rate, False
        self.layers, self.dim = config.num_hidden_layers, config.hidden_size
        self.context_seconds = config.context_seconds
        # A window is extended by its reflection, half a spectrum long, and has to give one frame.
        self.min_samples = max(config.n_fft // 2 + 1, math.prod(STRIDES) * config.hop_length)
        self.max_samples = round(config.context_seconds * sample_rate)
        self.network = _Network(config)
        self.eval().requires_grad_(False)

    def frames(self, n_samples: int) -> int:
        """Return the number of frames of a window of `n_samples` samples; 0 if it is shorter than `min_samples`.

        Raises
        ------
        SettingError
            If the window is longer than `context_seconds`.

        Examples
        --------
        >>> from featurestore.models import save_random_checkpoint
        >>> load_model(save_random_checkpoint("random", shape="mert2-tiny")).frames(30 * 24_000)
        750
        """
        check_longest(n_samples, self.max_samples, self.sample_rate)
        return 0 if n_samples < self.min_samples else n_samples // self.config.hop_length // math.prod(STRIDES)

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield hidden states 0 to `last`, one after the other as they are computed.

        State 0 is the output of the subsampler, state i that of block i.

        Parameters
        ----------
        wave : Tensor of float32, shape (windows, samples)
            Mono at `sample_rate`, as decoded; at least `min_samples` samples. The network computes windows that
            are longer than `context_seconds` as well, though it has never heard any; extraction refuses them.
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
            If `wave` has another shape or is too short, or there is no state `last`.

        Examples
        --------
        >>> import torch
        >>> from featurestore.models import save_random_checkpoint
        >>> model = load_model(save_random_checkpoint("random", shape="mert2-tiny"))
        >>> [tuple(state.shape) for state in model.states(torch.zeros(2, 24_000), last=1)]
        [(2, 25, 64), (2, 25, 64)]
        """
        check_float32(self, self.name)
        last = checked_last(self, last)
        check_wave(wave, self.min_samples)
        # Always in full precision: decibels of quiet audio have no room in half.
        with torch.autocast(wave.device.type, enabled=False):
            x: Tensor = self.network.feature_extractor(wave.float())
        for stage in self.network.subsampling_module:
            x = stage(x)
        yield x
        rotation = self._rotation(x)
        for block in self.network.layers[:last]:
            x = block(x, rotation)
            yield x

    def _rotation(self, x: Tensor) -> Rotation:
        """Of the positions of x [window, frame, feature], by the formula that the network was trained with."""
        size = self.dim // self.config.num_attention_heads
        with torch.autocast(x.device.type, enabled=False):
            exponents = torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size
            frequencies = 1.0 / self.config.rotary_embedding_base**exponents
            positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
            angles = positions[:, None] * frequencies
            return angles.cos(), angles.sin()

    def hidden_states(self, wave: Tensor) -> Tensor:
        """Compute all hidden states, shape (windows, layers + 1, frames, dim), of `wave`, as for `states`.

        Examples
        --------
        >>> import torch
        >>> from featurestore.models import save_random_checkpoint
        >>> model = load_model(save_random_checkpoint("random", shape="mert2-tiny"))
        >>> model.hidden_states(torch.zeros(1, 24_000)).shape
        torch.Size([1, 4, 25, 64])
        """
        return torch.stack(list(self.states(wave)), dim=1)

    forward = hidden_states
