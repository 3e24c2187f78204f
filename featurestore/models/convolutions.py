"""The convolutions of MERT as matrix products: channels last, in pieces that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024
"""Frames that a convolution gives at a time: 2 MB of 512 channels."""


class SampleConvs:
    """The convolutions over the samples with their norms and GELUs.

    Parameters
    ----------
    layers : iterable of Module
        Each with `conv` (Conv1d) and `layer_norm` (None, LayerNorm, or GroupNorm of one channel each).
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        convs = [_Conv(layer) for layer in layers]
        self._first, self._others = convs[0], convs[1:]

    def __call__(self, wave: Tensor) -> Tensor:
        """From wave [windows, samples] to frames [windows, frames, channels]."""
        lengths = [wave.shape[1]]
        for conv in (self._first, *self._others):
            lengths.append((lengths[-1] - conv.kernel) // conv.stride + 1)
        # Memory that is new costs more than what is computed in it: every window uses the same.
        room = [wave.new_empty(n, conv.channels) for n, conv in zip(lengths[2:-1], self._others, strict=False)]
        out = wave.new_empty(len(wave), lengths[-1], (self._others or [self._first])[-1].channels)
        for samples, into in zip(wave, out, strict=True):
            self._window(samples, [*room, into])
        return out

    def _window(self, samples: Tensor, outs: list[Tensor]) -> None:
        """Frames of one window; `outs` are what all convolutions but the first give."""
        first = self._first
        taps, weight = first.unfolded(samples)
        if not self._others:
            first.finished(torch.mm(taps, weight, out=outs[0]))
            return
        second = self._others[0]
        piece = taps.new_empty(min(len(taps), (CHUNK - 1) * second.stride + second.kernel), first.channels)
        x = piece
        for conv, out in zip(self._others, outs, strict=True):
            for begin in range(0, len(out), CHUNK):
                rows = out[begin : begin + CHUNK]
                start = begin * conv.stride
                stop = start + (len(rows) - 1) * conv.stride + conv.kernel
                if conv is second:
                    # What the first convolution gives is the largest array by far; it is never there as a whole.
                    x = first.finished(torch.mm(taps[start:stop], weight, out=piece[: stop - start]))
                    conv.into(x, rows)
                else:
                    conv.into(x[start:stop], rows)
            x = out


class _Conv:
    """One convolution with its norm and GELU; frames are rows, channels are columns."""

    def __init__(self, layer: Any) -> None:
        conv: nn.Conv1d = layer.conv
        self._norm: nn.Module | None = layer.layer_norm
        (self.kernel,), (self.stride,), self.channels = conv.kernel_size, conv.stride, conv.out_channels
        self._weight = conv.weight.permute(2, 1, 0).flatten(0, 1).contiguous()  # [kernel * channels in, channels]
        self._bias = conv.bias

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
        channels = x.shape[1]
        for tap in range(0, self.kernel, self.stride):
            # Taps of one stride are neighbours in memory, so that frames are rows of a matrix as they lie there.
            first, last = tap * channels, min(tap + self.stride, self.kernel) * channels
            rows = x.as_strided((len(out), last - first), (self.stride * channels, 1), x.storage_offset() + first)
            if tap:
                out.addmm_(rows, self._weight[first:last])
            elif self._bias is None:
                torch.mm(rows, self._weight[:last], out=out)
            else:
                torch.addmm(self._bias, rows, self._weight[:last], out=out)
        self.finished(out)

    def finished(self, x: Tensor) -> Tensor:
        """Norm over channels, where there is one, and GELU; in place."""
        if isinstance(self._norm, nn.LayerNorm):
            x.copy_(self._norm(x))
        return gelu_(x)


class PositionalConv:
    """The grouped convolution over frames with its GELU, as a product of spectra.

    Each block of frames gives `size - kernel + 1` results (overlap-save; Oppenheim and Schafer,
    Discrete-Time Signal Processing, section 8.7).

    Parameters
    ----------
    conv : Conv1d
        Grouped, of stride 1, padded by half its kernel.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        (kernel,) = conv.kernel_size
        self._groups, self._padding, self._bias = conv.groups, kernel // 2, conv.bias
        # Four kernels or more: 512 for a kernel of 128, which takes a window of 5 s in one block.
        self._size = 4 << (kernel - 1).bit_length()
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
