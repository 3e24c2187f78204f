"""MERT in half precision, for CUDA: weights of 16 bits, with what 16 bits would spoil kept in float32.

The network is that of models/mert.py, module for module; what is replaced are its dense layers and convolutions:
they take any input, compute in half and give half. What stays float32: the first convolution with its group norm
(quiet audio would lose its bits in half), all norms, and the residual stream, which outgrows half.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.encoder import Encoder, check_float32
from featurestore.models.kernels.convolutions import conv1d
from featurestore.models.mert import MertEncoder

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of the half precisions."""


def to_half(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """A `MertEncoder` with weights in float16 or bfloat16, a copy; any other encoder as it is, for autocast.

    ModelError is raised if the weights are not float32.
    """
    if not isinstance(encoder, MertEncoder):
        return encoder
    check_float32(encoder)
    # Weights that stay are shared with the original.
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    network: Any = copy.deepcopy(encoder, shared)
    for conv in network.feature_extractor.conv_layers[1:]:
        conv.conv = _HalfConv(conv.conv, dtype)
    for conv in network.feature_extractor.conv_layers:
        if isinstance(conv.layer_norm, nn.LayerNorm):
            conv.layer_norm = _FloatNorm(conv.layer_norm)
    projection = network.feature_projection
    if projection.layer_norm is not None:
        projection.layer_norm = _FloatNorm(projection.layer_norm)
    projection.projection = _HalfDense([projection.projection], dtype)
    position = network.encoder.pos_conv_embed
    position.conv = _HalfConv(position.conv, dtype)
    for layer in network.encoder.layers:
        layer.attention = _HalfAttention(layer.attention, dtype)
        feed_forward = layer.feed_forward
        feed_forward.intermediate_dense = _HalfDense([feed_forward.intermediate_dense], dtype)
        feed_forward.output_dense = _HalfDense([feed_forward.output_dense], dtype)
    copied: Encoder = network
    return copied


class _HalfDense(nn.Module):
    """Dense layers of one input side by side, in half."""

    def __init__(self, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.cat([layer.weight.to(dtype) for layer in layers]))
        self.register_buffer("bias", torch.cat([layer.bias.to(dtype) for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return F.linear(x.to(weight.dtype), weight, self.get_buffer("bias"))


class _HalfConv(nn.Module):
    """A convolution in half."""

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.to(dtype))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.to(dtype))
        self._settings: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}

    def forward(self, x: Tensor) -> Tensor:
        weight = self.get_buffer("weight")
        return conv1d(x.to(weight.dtype), weight, self.bias, **self._settings)  # type: ignore[arg-type]


class _FloatNorm(nn.LayerNorm):
    """A layer norm in float32 of an input in half."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class _HalfAttention(nn.Module):
    """Attention in half; queries, keys and values come from one product."""

    def __init__(self, attention: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.qkv = _HalfDense([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = _HalfDense([attention.out_proj], dtype)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out
