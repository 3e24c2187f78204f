"""The convolutions of MERT as matrix products: channels last, in pieces that stay in a core's cache."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.kernels.products import product_dtype

CHUNK = 512
"""Frames that a convolution gives at a time: 1 MB of 512 channels."""

PIECE = 127
"""Frames of the last convolution that are computed at a time: the second has just below 8 `CHUNK` for them."""


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, **settings: Any) -> Tensor:
    """`torch.nn.functional.conv1d`; a grouped one on a CPU calculates in float32, whatever is given or autocast.

    oneDNN's grouped convolutions in half precision are wrong on processors with AMX (docs/decisions/111). `x` is
    of the type of `weight`, unless it is a grouped one on a CPU; `settings` are stride, padding, dilation and
    groups.
    """
    if settings.get("groups", 1) == 1 or x.device.type != "cpu":
        return F.conv1d(x, weight, bias, **settings)
    single = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        return F.conv1d(x.to(single), weight.to(single), None if bias is None else bias.to(single), **settings)


class GroupedConv1d(nn.Conv1d):
    """A `torch.nn.Conv1d` padded with zeros that gives float32 on a CPU, where `conv1d` says so."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [windows, channels in, frames]."""
        settings = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return conv1d(x, self.weight, self.bias, groups=self.groups, **settings)


class _Exact(nn.Module):
    """A convolution in float32, whatever autocast says: quiet audio would lose its bits in half."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x."""
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = super().forward(x.float())
            return out


class _ExactConv1d(_Exact, nn.Conv1d):
    pass


class _ExactConv2d(_Exact, nn.Conv2d):
    pass


EXACT: dict[type[nn.Module], type[nn.Module]] = {nn.Conv1d: _ExactConv1d, nn.Conv2d: _ExactConv2d}
"""Convolutions in float32, whatever autocast says; they have the attributes of those of torch."""


class ScratchBuffers:
    """Memory that is used again and again: to be given new memory costs more than what is computed in it."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, rows: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A matrix [rows, width] of anything, which lasts until name and type are taken again."""
        block = self._blocks.get((name, dtype))
        if block is None or block.numel() < rows * width:
            block = self._blocks[name, dtype] = torch.empty(rows * width, dtype=dtype)
        return block[: rows * width].view(rows, width)


class SampleConvs:
    """The convolutions over the samples with their norms and GELUs.

    Layers have `conv` (Conv1d) and `layer_norm` (None, LayerNorm, or GroupNorm of one channel each). `dtype` is
    that of the products and of what lies between them, the first convolution apart, which is in float32;
    `product_dtype` says where bfloat16 becomes float32.
    """

    def __init__(self, layers: Iterable[nn.Module], dtype: torch.dtype = torch.float32) -> None:
        first, *others = layers
        dtype = product_dtype(dtype, *(_inner(layer) for layer in others))
        self._dtype = dtype
        self._first, self._others = Conv(first), [Conv(layer, dtype) for layer in others]

    def __call__(self, wave: Tensor, scratch: ScratchBuffers) -> Tensor:
        """From wave [windows, samples] to frames [windows, frames, channels]."""
        length = wave.shape[1]
        for conv in (self._first, *self._others):
            length = conv.frames(length)
        dtype = self._dtype if self._others else wave.dtype
        out = wave.new_empty(len(wave), length, conv.channels, dtype=dtype)
        for samples, into in zip(wave, out, strict=True):
            self._window(samples, into, scratch)
        return out.float()

    def _window(self, samples: Tensor, out: Tensor, scratch: ScratchBuffers) -> None:
        """Convolve the samples of one window into out [frames, channels]."""
        taps, weight = self._first.unfolded(samples)
        stride = math.prod(conv.stride for conv in self._others)
        for begin in range(0, len(out), PIECE):
            self._piece(taps[begin * stride :], weight, out[begin : begin + PIECE], scratch)

    def _piece(self, taps: Tensor, weight: Tensor, out: Tensor, scratch: ScratchBuffers) -> None:
        """Convolve what the first frames, out [frames, channels], need of taps."""
        first = self._first
        if not self._others:
            first.finished(torch.mm(taps[: len(out)], weight, out=out))
            return
        # How many frames each convolution has to give for those of the next.
        needed = [len(out)]
        for conv in reversed(self._others[1:]):
            needed.append((needed[-1] - 1) * conv.stride + conv.kernel)
        x = taps
        for number, (conv, rows) in enumerate(zip(self._others, reversed(needed), strict=True), 1):
            # What comes from one and goes into the other changes places with every convolution.
            name = "large" if number % 2 else "medium"
            y = out if number == len(self._others) else scratch.take(name, rows, conv.channels, self._dtype)
            for begin in range(0, rows, CHUNK):
                piece = y[begin : begin + CHUNK]
                inputs = x[begin * conv.stride :][: (len(piece) - 1) * conv.stride + conv.kernel]
                if number == 1:
                    # What the first convolution gives is the largest array by far; it is never there as a whole.
                    given = scratch.take("first", len(inputs), first.channels, self._dtype)
                    for row in range(0, len(inputs), CHUNK):
                        taps, into = inputs[row : row + CHUNK], given[row : row + CHUNK]
                        exact = scratch.take("exact", *into.shape) if into.dtype != taps.dtype else into
                        first.finished(torch.mm(taps, weight, out=exact))
                        if exact is not into:
                            into.copy_(exact)
                    inputs = given
                conv.into(inputs, piece)
            x = y


def _inner(layer: Any) -> int:
    conv: nn.Conv1d = layer.conv
    return conv.in_channels * conv.kernel_size[0]


class Conv:
    """One convolution with its norm and GELU; frames are rows, channels are columns."""

    def __init__(self, layer: Any, dtype: torch.dtype = torch.float32) -> None:
        conv: nn.Conv1d = layer.conv
        self._norm: nn.Module | None = layer.layer_norm
        (self.kernel,), (self.stride,), self.channels = conv.kernel_size, conv.stride, conv.out_channels
        weight = conv.weight.permute(2, 1, 0).flatten(0, 1)  # [kernel * channels in, channels]
        self._weight = weight.to(dtype).contiguous()
        self._bias = conv.bias

    def frames(self, length: int) -> int:
        """Frames that so many frames or samples give."""
        return (length - self.kernel) // self.stride + 1

    def unfolded(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Taps [frames, kernel + 1] of the first convolution and weights [kernel + 1, channels], the last: bias.

        A group norm becomes part of them. The convolution is linear, so the mean and variance over time of what
        it gives follow from those of its taps, without computing it. The norm removes a constant, so the samples
        may lose theirs first, and nothing is lost by cancellation where a loud offset meets a quiet signal.
        """
        weight, bias = self._weight, self._bias
        if isinstance(self._norm, nn.GroupNorm):
            exact = samples.double()
            exact = exact - exact.mean()
            samples = exact.float()
            taps = exact.unfold(0, self.kernel, self.stride)
            mean = taps.mean(dim=0)
            taps = taps - mean
            weight = weight.double()
            variance = ((taps.T @ taps / len(taps)) @ weight * weight).sum(dim=0).clamp_(min=0)
            weight = weight * (self._norm.weight / torch.sqrt(variance + self._norm.eps))
            bias = self._norm.bias - mean @ weight
        elif bias is None:
            bias = weight.new_zeros(self.channels)
        taps = F.pad(samples.unfold(0, self.kernel, self.stride), (0, 1), value=1.0)
        return taps, torch.cat([weight, bias[None]]).float()

    def into(self, x: Tensor, out: Tensor) -> None:
        """Convolve frames x [frames in, channels in] into out [frames, channels]."""
        step = self.stride * x.shape[1]
        # In half all taps are one product: sums of several would be rounded in between.
        taps = step if x.dtype == torch.float32 else len(self._weight)
        for begin in range(0, len(self._weight), taps):
            # Taps of one stride are neighbours in memory: frames are rows of a matrix as they lie there.
            weight = self._weight[begin : begin + taps]
            rows = x.as_strided((len(out), len(weight)), (step, 1), x.storage_offset() + begin)
            if begin:
                out.addmm_(rows, weight)
            else:
                torch.mm(rows, weight, out=out)
        if self._bias is not None:
            out += self._bias
        self.finished(out)

    def finished(self, x: Tensor) -> Tensor:
        """Norm over channels, where there is one, and GELU; in place."""
        if isinstance(self._norm, nn.LayerNorm):
            x.copy_(self._norm(x.float()))
        return gelu_(x)


class PositionalConv:
    """The grouped convolution over frames with its GELU, as a product of spectra.

    Each block of frames gives `size - kernel + 1` results (overlap-save; Oppenheim and Schafer, Discrete-Time
    Signal Processing, section 8.7). The Conv1d has stride 1, and is padded by half its kernel.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        (kernel,) = conv.kernel_size
        self._groups, self._padding, self._bias = conv.groups, kernel // 2, conv.bias
        # Two kernels or more: 256 for a kernel of 128. Four would be a little faster, with spectra twice as large.
        self._size = 2 << (kernel - 1).bit_length()
        self._step = self._size - kernel + 1
        # A convolution of neural networks is a correlation: the conjugate of the kernel's spectrum.
        spectrum = torch.fft.rfft(conv.weight, n=self._size).conj().unflatten(0, (self._groups, -1))
        self._spectrum = spectrum.permute(3, 0, 2, 1).resolve_conj().contiguous()  # [frequency, group, in, out]

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve frames x [windows, frames, dim]."""
        windows, frames, dim = x.shape
        blocks = -(-frames // self._step)
        missing = (blocks - 1) * self._step + self._size - self._padding - frames
        padded = F.pad(x, (0, 0, self._padding, missing))
        spectra = torch.fft.rfft(padded.unfold(1, self._size, self._step))  # [window, block, channel, frequency]
        spectra = spectra.view(windows * blocks, self._groups, -1, spectra.shape[-1]).permute(3, 1, 0, 2)
        products = torch.matmul(spectra, self._spectrum)  # [frequency, group, window * block, channel]
        products = products.permute(2, 1, 3, 0).reshape(windows, blocks, dim, -1)
        results = torch.fft.irfft(products, n=self._size)[..., : self._step]
        out = results.transpose(2, 3).reshape(windows, -1, dim)[:, :frames]
        return gelu_(out + self._bias)


def gelu_(x: Tensor) -> Tensor:
    """The exact GELU, in place."""
    result: Tensor = torch.ops.aten.gelu_(x)
    return result
