"""The forward pass of MERT with its large matrix products in int8: less exact, and faster.

Weights have 8 bits and one scale for each output, activations 7 bits and one scale for each row, found as they
come: no calibration, and no window depends on others of its batch. What is small or sensitive stays in float32:
the first convolution and the late ones, norms, projection, positional convolution, attention's softmax, sums.

Seven bits, as processors without VNNI add two products in 16 bits, and 2 * 127 * 127 is the most that fits: every
processor gives the same sums, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.errors import ModelError, SettingError
from featurestore.models.convolutions import Conv, Room, SampleConvs, gelu_
from featurestore.models.encoder import Encoder
from featurestore.models.engine import Block, CpuEngine
from featurestore.models.fidelity import Fidelity, fidelity, probe
from featurestore.models.mert import MertEncoder

LEAST_COSINE = 0.99
"""A hidden state that is farther from float32 on the probe (`Fidelity.cosines`) is refused."""

_ROWS = 512
"""Rows that the feed-forward layers take at a time, so that what lies between them stays in the cache."""

_CONVS = 3
"""Convolutions in int8, from the second on: later ones have few operations, and errors there tell most."""

_GELU_MIN = 0.17
"""The GELU gives nothing below minus this (-0.16997)."""

_TINY = 1e-30
"""Scale of a row of zeros."""


def quantised(encoder: Encoder, layers: Sequence[int] | None = None) -> tuple[Int8Engine, Fidelity]:
    """An encoder on the CPU in int8, and how near it is to float32 on a probe of synthetic music.

    Parameters
    ----------
    encoder : Encoder
        In float32.
    layers : sequence of int, optional
        Hidden states that are wanted; all by default. Others may be as far from float32 as they are.

    Raises
    ------
    ModelError
        If one of these states is farther from float32 than `LEAST_COSINE` allows.
    SettingError
        If there is no int8 for this family of models, or for this build of torch.
    """
    if not isinstance(encoder, MertEncoder):
        raise SettingError(
            f"precision int8 is for MERT and HuBERT networks, but {encoder.name} is a "
            f"{type(encoder).__name__}: use fp32"
        )
    if not is_available():
        raise SettingError("this build of torch has no exact int8 products for this processor: use precision fp32")
    engine = Int8Engine(encoder)
    wanted = range(encoder.layers + 1) if layers is None else layers
    found = fidelity(engine, encoder, probe(encoder.sample_rate, encoder.min_samples), max(wanted))
    for layer in wanted:
        cosine = found.cosines[layer]
        if not cosine >= LEAST_COSINE:  # nor NaN
            raise ModelError(
                f"{encoder.name} loses too much in int8: the centred cosine of layer {layer} with float32 is "
                f"{cosine:.4f} on the probe, and at least {LEAST_COSINE} is asked for: use precision fp32"
            )
    return engine, found


def is_available() -> bool:
    """Whether this build of torch has oneDNN's int8 products, and they are exact on this processor."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    # The largest values next to each other: sums of 16 bits that overflow would show here.
    weight = torch.where(torch.rand(32, 256, generator=generator, dtype=torch.float32) < 0.9, 127, -127)
    rows = torch.where(torch.rand(8, 256, generator=generator, dtype=torch.float32) < 0.9, 127, 0)
    try:
        scales, biases = torch.ones(32, dtype=torch.float32), torch.zeros(32, dtype=torch.float32)
        found = _product(rows.to(torch.uint8), _packed(weight.to(torch.int8)), scales, biases)
    except (RuntimeError, NotImplementedError):
        return False
    return torch.equal(found, (rows @ weight.T).float())


class Int8Engine(CpuEngine):
    """A `MertEncoder` in int8 on the CPU: an `Encoder` that several threads can use at a time.

    Parameters
    ----------
    model : MertEncoder
        In float32 on the CPU. `is_available` must hold.
    """

    def __init__(self, model: MertEncoder) -> None:
        super().__init__(model)
        with torch.no_grad():
            self._convs = SampleConvs(model.feature_extractor.conv_layers, kinds=[Conv, *[_Int8Conv] * _CONVS])
            self._blocks = [_Int8Block(layer) for layer in model.encoder.layers]

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Hidden states 0 to `last`, one after the other.

        Each window is computed by itself: whatever else is in the batch, its numbers are the same to the last bit.
        In larger matrices float32 would round differently, and int8 turns some of that into whole steps.
        """
        self.model.prepared(wave, last)  # refuses what is no batch of windows
        room = Room()
        alone = [self._states(window[None], last, room) for window in wave]
        for states in zip(*alone, strict=True):
            yield torch.cat(states)


class Int8Linear:
    """A dense layer in int8, from and to float32.

    Parameters
    ----------
    weight : Tensor, shape (outputs, inputs)
    bias : Tensor, shape (outputs,), or None
    after_gelu : bool
        Whether the inputs come out of a GELU: no bit is then spent on what it cannot give.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, after_gelu: bool = False) -> None:
        outputs, inputs = weight.shape
        self._after_gelu = after_gelu
        self._scales = weight.abs().amax(dim=1).clamp_(min=_TINY) / 127
        quantised = _rounded(weight / self._scales[:, None], keep_sums=after_gelu)
        sums = quantised.sum(dim=1) * self._scales
        self._weight = _packed(quantised.to(torch.int8))
        self._bias = weight.new_zeros(outputs) if bias is None else bias
        self._half = weight.new_full((inputs,), 64.5)
        # An input is scale * (q - 64), or scale * q - 0.17: what is constant in it is added to the sums.
        self._before_scale = weight.new_zeros(outputs) if after_gelu else -64 * sums
        if after_gelu:
            self._bias = self._bias - _GELU_MIN * sums

    def __call__(self, x: Tensor, room: Room, out: Tensor | None = None, base: Tensor | None = None) -> Tensor:
        """Outputs [rows, outputs] of inputs x [rows, inputs] plus, if given, `base` [rows, outputs]."""
        scaled = room.take("quantised", *x.shape)
        if self._after_gelu:
            scale = x.amax(dim=1, keepdim=True).add_(_GELU_MIN).div_(127)
            inverse = 1 / scale
            torch.mul(x, inverse, out=scaled).add_(inverse.mul_(_GELU_MIN).add_(0.5))
        else:
            largest = torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True))
            scale = largest.clamp_(min=_TINY).div_(63)
            torch.addcmul(self._half, x, 1 / scale, out=scaled)
        # Conversion cuts off what is behind the point: the half that was added makes it round.
        found = _product(scaled.to(torch.uint8), self._weight, self._scales, self._before_scale)
        if base is None:
            return torch.addcmul(self._bias, found, scale, out=found if out is None else out)
        return torch.addcmul(base, found, scale, out=found).add_(self._bias)


class _Int8Conv(Conv):
    """A convolution over frames that come out of a GELU."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self._dense = Int8Linear(self._weight.T, self._bias, after_gelu=True)

    def into(self, x: Tensor, out: Tensor, room: Room) -> None:
        """Convolve frames x [frames in, channels in] into out [frames, channels]."""
        shape = (len(out), self.kernel * x.shape[1])
        rows = x.as_strided(shape, (self.stride * x.shape[1], 1), x.storage_offset())
        self._dense(rows, room, out=out)
        self.finished(out)


class _Int8Block(Block):
    """One transformer layer with its dense layers in int8."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        attention = layer.attention
        parts: list[nn.Linear] = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._qkv = Int8Linear(torch.cat([x.weight for x in parts]), torch.cat([x.bias for x in parts]))
        self._out8 = Int8Linear(attention.out_proj.weight, attention.out_proj.bias)
        self._up8 = Int8Linear(self._up.weight, self._up.bias)
        self._down8 = Int8Linear(self._down.weight, self._down.bias, after_gelu=True)

    def _attended(self, x: Tensor, residual: Tensor, room: Room) -> Tensor:
        windows, frames, dim = x.shape
        qkv = self._qkv(x.view(-1, dim), room).view(windows, frames, 3, self._heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, dim)
        return self._out8(heads, room, base=residual.view(-1, dim)).view_as(x)

    def _fed_forward(self, x: Tensor, residual: Tensor, room: Room) -> Tensor:
        dim = x.shape[-1]
        pairs = zip(torch.split(x.view(-1, dim), _ROWS), torch.split(residual.view(-1, dim), _ROWS), strict=True)
        return torch.cat([self._down8(gelu_(self._up8(a, room)), room, base=b) for a, b in pairs]).view_as(x)


def _rounded(x: Tensor, *, keep_sums: bool) -> Tensor:
    """To whole numbers, rows keeping their sums if asked: what is common to all inputs is then not lost.

    That is what features are most sensitive to after a GELU, where inputs have a mean: an error in it would be
    the same in all frames, and pooling would not average it away.
    """
    shift = x.new_zeros(len(x), 1)
    for _ in range(4 if keep_sums else 0):
        shift += (x - (x + shift).round_()).mean(dim=1, keepdim=True)
    return (x + shift).round_().clamp_(-127, 127)


def _packed(weight: Tensor) -> Tensor:
    """Weights [outputs, inputs] of int8 as oneDNN wants them."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    return packed


def _product(rows: Tensor, weight: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
    """Float32 [rows, outputs]: rows [rows, inputs] of uint8 times packed weights, by scales, plus bias."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(rows, 1.0, 0, weight, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
    )
    return found
