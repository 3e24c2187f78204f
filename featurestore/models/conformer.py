"""Conformer blocks with rotary positions over what a subsampler makes of mel spectra, and encoders of them.

Conformer: Gulati et al. 2020, arXiv:2005.08100; rotary positions: Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.encoder import EncoderModule, check_call, check_longest
from featurestore.models.kernels.convolutions import GroupedConv1d, gelu_
from featurestore.models.kernels.products import attention
from featurestore.models.paging import page_out


class GeluInPlace(nn.Module):
    """The exact GELU, in the memory of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu_(x)


_SILU = partial(nn.SiLU, inplace=True)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": GeluInPlace, "silu": _SILU, "swish": _SILU}
"""By their names in config.json."""

_ROWS = 2048
"""Frames of a window that are in a feed-forward at a time: inside, they are four times as wide."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the angles of rotary positions, each of float32, shape (frames, head size / 2)."""


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What a Conformer block is like.

    Parameters
    ----------
    width, inner, heads : int
        Features of a frame, features inside the feed-forwards, heads of the attention.
    kernel : int
        Frames that the convolution sees; odd.
    eps : float
        Added to variances.
    activation : {"gelu", "silu", "swish"}
        Of the feed-forwards and of the convolution.
    batch_norm : bool
        Whether the convolution has the batch norm of the paper, or else a layer norm.
    rotates_input : bool
        Whether the positions turn what queries and keys are made of, or else queries and keys.
    """

    width: int
    inner: int
    heads: int
    kernel: int
    eps: float = 1e-5
    activation: str = "gelu"
    batch_norm: bool = False
    rotates_input: bool = False


class Transpose(nn.Module):
    """Between (windows, frames, channels) and (windows, channels, frames)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class BatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015, arXiv:1502.03167) of the second axis, by learned statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias)


class _FeedForward(nn.Module):
    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]()
        self.w_1 = nn.Linear(shape.width, shape.inner)
        self.w_2 = nn.Linear(shape.inner, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.w_2(self.activation(self.w_1(part))) for part in torch.split(x, _ROWS, dim=1)]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class _Attention(nn.Module):
    """Full attention with rotary positions."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.heads, self.rotates_input = shape.heads, shape.rotates_input
        self.query_proj = nn.Linear(shape.width, shape.width)
        self.key_proj = nn.Linear(shape.width, shape.width)
        self.value_proj = nn.Linear(shape.width, shape.width)
        self.out_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        turned = self._merge(_rotated(self._split(x), rotation)) if self.rotates_input else x
        query, key = self._split(self.query_proj(turned)), self._split(self.key_proj(turned))
        if not self.rotates_input:
            query, key = _rotated(query, rotation), _rotated(key, rotation)
        heads = attention(query, key, self._split(self.value_proj(x)))
        out: Tensor = self.out_proj(self._merge(heads))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """Shape (windows, heads, frames, head size)."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    @staticmethod
    def _merge(heads: Tensor) -> Tensor:
        """Shape (windows, frames, width)."""
        return heads.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn pairs of x [window, head, frame, feature], of which the second half holds one each, in float32."""
    cosine, sine = rotation
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


class Convolution(nn.Module):
    """Over frames, each channel by itself, between a gated dense layer and another one."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width, kernel = shape.width, shape.kernel
        norm: nn.Module = BatchNorm(width)
        if not shape.batch_norm:
            norm = nn.Sequential(Transpose(), nn.LayerNorm(width, eps=shape.eps), Transpose())
        self.layer_norm = nn.LayerNorm(width, eps=shape.eps)
        self.conv_block = nn.Sequential(
            Transpose(),
            nn.Conv1d(width, 2 * width, 1, bias=False),
            nn.GLU(dim=1),
            GroupedConv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
            norm,
            ACTIVATIONS[shape.activation](),
            nn.Conv1d(width, width, 1, bias=False),
            Transpose(),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_block(self.layer_norm(x))
        return out


class Block(nn.Module):
    """One Conformer block: half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width, eps = shape.width, shape.eps
        self.ffn1_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = _FeedForward(shape)
        self.attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(shape)
        self.conv_module = Convolution(shape)
        self.ffn2_layer_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = _FeedForward(shape)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = torch.add(x, self.ffn1(self.ffn1_layer_norm(x)), alpha=0.5)
        x = x + self.attn(self.attn_layer_norm(x), rotation)
        x = x + self.conv_module(x)
        x = torch.add(x, self.ffn2(self.ffn2_layer_norm(x)), alpha=0.5)
        out: Tensor = self.final_layer_norm(x)
        return out


def rotary_frequencies(head_size: int, base: float, device: torch.device | None = None) -> Tensor:
    """Radians a frame of each pair, float32, shape (head size / 2,), by the formula of the hub's networks."""
    exponents = torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size
    return 1.0 / base**exponents


class ConformerNetwork(nn.Module):
    """What a checkpoint holds, and the names that it has for it.

    `feature_extractor` makes spectra of samples, in float32 whatever the precision; `subsampling_module` makes
    state 0 of them, one after the other; `layers` are blocks; `layer_norm` is what the last state has passed.
    """

    feature_extractor: nn.Module
    subsampling_module: nn.ModuleList
    layers: nn.ModuleList
    layer_norm: nn.Module

    def frequencies(self, device: torch.device) -> Tensor:
        """Of the rotary positions, radians a frame, float32, shape (head size / 2,)."""
        raise NotImplementedError


class ConformerEncoder(EncoderModule):
    """An `Encoder` of Conformer blocks; what differs between them is the network and its `frames`.

    The state dict of `network` has the names of the checkpoints; `context_seconds` is the longest window that it
    was trained with; the others are as in `Encoder`.
    """

    network: ConformerNetwork

    def __init__(
        self,
        network: ConformerNetwork,
        *,
        dim: int,
        min_samples: int,
        context_seconds: float,
        sample_rate: int,
        name: str = "",
        revision: str | None = None,
    ) -> None:
        super().__init__(name=name, revision=revision)
        self.sample_rate, self.do_normalize, self.context_seconds = sample_rate, False, context_seconds
        self.layers, self.dim, self.min_samples = len(network.layers), dim, min_samples
        self.max_samples = round(context_seconds * sample_rate)
        self.network = network
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
        return 0 if n_samples < self.min_samples else self._frames(n_samples)

    def _frames(self, n_samples: int) -> int:
        raise NotImplementedError

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Yield hidden states 0 to `last`, as `Encoder.states` says.

        State 0 is the output of the subsampler, state i that of block i. The network computes windows that are
        longer than `context_seconds` as well, though it has never heard any; extraction refuses them.

        Examples
        --------
        >>> import torch
        >>> from featurestore.models import save_random_checkpoint
        >>> model = load_model(save_random_checkpoint("random", shape="mert2-tiny"))
        >>> [tuple(state.shape) for state in model.states(torch.zeros(2, 24_000), last=1)]
        [(2, 25, 64), (2, 25, 64)]
        """
        last = check_call(self, wave, last)
        # Always in full precision: decibels of quiet audio have no room in half.
        with torch.autocast(wave.device.type, enabled=False):
            x: Tensor = self.network.feature_extractor(wave.float())
        for stage in self.network.subsampling_module:
            x = stage(x)
            self._used(stage, x)
        yield x
        rotation = self._rotation(x)
        for number, block in enumerate(self.network.layers[:last], 1):
            x = block(x, rotation)
            self._used(block, x)
            yield x if number < self.layers else self.network.layer_norm(x)

    @staticmethod
    def _used(module: nn.Module, x: Tensor) -> None:
        """Of windows of minutes, each module has work for seconds: longer than reading its weights again takes."""
        if x.shape[1] > _ROWS:
            page_out(module)

    def _rotation(self, x: Tensor) -> Rotation:
        """Of the positions of x [window, frame, feature]."""
        with torch.autocast(x.device.type, enabled=False):
            positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
            angles = positions[:, None] * self.network.frequencies(x.device)
            return angles.cos(), angles.sin()
