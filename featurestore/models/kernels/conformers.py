"""Conformer encoders arranged for CPUs: the same network with other products, in float32 or in bfloat16."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.conformer import ConformerEncoder, Convolution
from featurestore.models.encoder import check_float32
from featurestore.models.kernels.products import product_dtype

_ROWS = 750
"""Frames of the windows that weights are arranged for; others are computed as well."""


def arrange_conformer(encoder: ConformerEncoder, dtype: torch.dtype = torch.float32) -> ConformerEncoder:
    """A copy of a Conformer encoder that takes less time on a CPU; threads can share it.

    `encoder` is in float32 on the CPU, or ModelError is raised; what stays float32 is shared with it. In bfloat16
    are the products of dense layers, of attention and of convolutions over bands and spectra, if `dtype` says so:
    norms, the residual stream, the softmax and convolutions of one channel each are float32 in any case.
    """
    check_float32(encoder)
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    arranged = copy.deepcopy(encoder, shared)
    for module in list(arranged.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, _Dense(child, dtype))
            elif isinstance(child, Convolution):
                setattr(module, name, _Convolution(child, dtype))
            elif isinstance(child, nn.Conv2d) and dtype != torch.float32:
                setattr(module, name, _HalfConv2d(child, dtype))
    return arranged.requires_grad_(False)


class _Dense(nn.Module):
    """A dense layer, or a convolution over single frames, of frames [window, frame, feature].

    With AVX-512 by oneDNN, which on AMD takes 0.85 of MKL's time, and on Intel the same. Its products in half
    read weights in an order of its own: a copy they are anyway.
    """

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype = product_dtype(dtype, layer.weight[0].numel())
        self._by_onednn = _has_products(dtype)
        self.weight, self.bias = nn.Parameter(layer.weight.flatten(1)), layer.bias
        if dtype != torch.float32:
            _halve(self, dtype)
            if self._by_onednn:
                self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ROWS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if not self._by_onednn:
            return F.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def _has_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN has the faster products: it may have been told to use fewer instructions than there are."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _HalfConv2d(nn.Module):
    """A convolution over bands and spectra that computes in half and gives float32."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self._settings: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding}
        _halve(self, product_dtype(dtype, conv.weight[0].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.to(self.weight.dtype), self.weight, self.bias, **self._settings).float()


def _halve(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace parameters by buffers in half, which `check_float32` leaves alone."""
    for name, parameter in list(module.named_parameters()):
        delattr(module, name)
        module.register_buffer(name, parameter.detach().to(dtype))


class _Convolution(nn.Module):
    """The convolution of a block with its dense layers as such."""

    def __init__(self, plain: Convolution, dtype: torch.dtype) -> None:
        super().__init__()
        _, expand, _, *inner, project, _ = plain.conv_block
        self.layer_norm, self.inner = plain.layer_norm, nn.Sequential(*inner)
        self.expand, self.project = _Dense(expand, dtype), _Dense(project, dtype)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.glu(self.expand(self.layer_norm(x)), dim=-1)
        out: Tensor = self.project(self.inner(gated.mT).mT)
        return out
