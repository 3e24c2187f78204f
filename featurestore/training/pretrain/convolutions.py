"""MERT's convolutions in training on CPUs: matrix products with channels last, which take half the time.

They give what the modules give, up to rounding, and their gradients.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from featurestore.models.checkpoints.config import MertConfig


def fits(config: MertConfig) -> bool:
    """Whether the convolutions over the samples can be computed by `features`."""
    return (
        config.feat_extract_norm == "group"
        and not config.conv_bias
        and all(s <= k <= 2 * s for k, s in zip(config.conv_kernel, config.conv_stride, strict=True))
    )


def features(layers: Any, wave: Tensor, frames: int) -> Tensor:
    """What the convolutions over the samples make of windows.

    All windows lie in one matrix of frames by channels, each with so many rows that every stride divides them. The
    few rows at the end of a window that reach into the next one are cut off in the end.

    Parameters
    ----------
    layers : sequence of modules
        Each with `conv`, the first with a group norm of one channel each.
    wave : Tensor of float32, shape (windows, samples)
        Prepared as the model wants it.
    frames : int
        Of a window.

    Returns
    -------
    Tensor of float32, shape (windows, frames, channels)
    """
    first, *others = layers
    windows, samples = wave.shape
    (kernel,), (stride,) = first.conv.kernel_size, first.conv.stride
    valid = (samples - kernel) // stride + 1
    multiple = math.prod(layer.conv.stride[0] for layer in others)
    rows = -(-valid // multiple) * multiple
    x = _normalised(first, wave, valid, rows).view(windows * rows, -1)
    for layer in others:
        weight = layer.conv.weight.permute(2, 1, 0).flatten(0, 1)
        x = _Conv.apply(x, weight, layer.conv.stride[0])
    out: Tensor = x.view(windows, rows // multiple, -1)[:, :frames]
    return out


def _normalised(layer: Any, wave: Tensor, valid: int, rows: int) -> Tensor:
    """The first convolution with its group norm and GELU, shape (windows, rows, channels).

    The convolution is linear, so the mean and variance over time of what it gives follow from those of its taps,
    which are not trained: the norm becomes a part of the weights, of each window its own.
    """
    (kernel,), (stride,), norm = layer.conv.kernel_size, layer.conv.stride, layer.layer_norm
    wave = wave - wave.mean(dim=1, keepdim=True)
    padded = F.pad(wave, (0, max(0, (rows - 1) * stride + kernel - wave.shape[1])))
    taps = padded.unfold(1, kernel, stride)[:, :rows]
    exact = taps[:, :valid].double()
    mean = exact.mean(dim=1, keepdim=True)
    exact = exact - mean
    covariance = (exact.transpose(1, 2) @ exact / valid).float()
    weight = layer.conv.weight[:, 0]  # [channels, kernel]
    variance = ((weight @ covariance) * weight).sum(dim=2).clamp(min=0)  # [windows, channels]
    scaled = weight * (norm.weight / torch.sqrt(variance + norm.eps))[..., None]
    bias = norm.bias - (scaled @ mean.float().transpose(1, 2))[..., 0]
    return F.gelu(torch.baddbmm(bias[:, None], taps, scaled.transpose(1, 2)))


class _Conv(torch.autograd.Function):
    """A convolution and GELU. Taps of one stride are neighbours in memory, so they are rows of a matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        rows = x.view(len(x) // stride, -1)
        width = rows.shape[1]
        out = rows @ weight[:width]
        if len(weight) > width:
            out[:-1].addmm_(rows[1:, : len(weight) - width], weight[width:])
        ctx.save_for_backward(rows, weight, out)
        ctx.shape = x.shape
        return F.gelu(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, weight, out = ctx.saved_tensors
        width = rows.shape[1]
        gradient = torch.ops.aten.gelu_backward(gradient.contiguous(), out)
        of_weight = torch.empty_like(weight)
        torch.mm(rows.T, gradient, out=of_weight[:width])
        of_rows = gradient @ weight[:width].T
        if (rest := len(weight) - width) > 0:
            torch.mm(rows[1:, :rest].T, gradient[:-1], out=of_weight[width:])
            of_rows[1:, :rest].addmm_(gradient[:-1], weight[width:].T)
        return of_rows.view(ctx.shape), of_weight, None


def positional(module: Any, x: Tensor) -> Tensor:
    """The grouped convolution over frames [windows, frames, dim] with its GELU, as a product of spectra.

    In float32 under autocast, too.
    """
    with torch.autocast("cpu", enabled=False):
        return _positional(module.conv, x.float())


def _positional(conv: Any, x: Tensor) -> Tensor:
    (kernel,), frames, groups = conv.kernel_size, x.shape[1], conv.groups
    size = _smooth(frames + kernel - 1)
    # A convolution of neural networks is a correlation: the conjugate of the kernel's spectrum.
    kernels = torch.fft.rfft(conv.weight, n=size).conj().unflatten(0, (groups, -1)).permute(3, 0, 2, 1)
    spectra = torch.fft.rfft(
        F.pad(x, (0, 0, kernel // 2, 0)).transpose(1, 2), n=size
    )  # [window, channel, frequency]
    spectra = spectra.unflatten(1, (groups, -1)).permute(3, 1, 0, 2)
    products = (spectra @ kernels).permute(2, 1, 3, 0).flatten(1, 2)  # [window, channel, frequency]
    moved = torch.fft.irfft(products, n=size)[..., :frames].transpose(1, 2)
    return F.gelu(moved + conv.bias)


def _smooth(size: int) -> int:
    """The next multiple of 64 that has no prime factor above 5: quick to transform."""
    size = -(-size // 64) * 64
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return size
        size += 64
