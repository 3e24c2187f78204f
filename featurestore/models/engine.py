"""The forward pass of MERT arranged for CPUs: the same float32 numbers up to rounding, in less time.

What is arranged differently, and what it is worth, is in docs/performance.md. It takes operations of torch alone,
and compiles nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.models.convolutions import PositionalConv, SampleConvs, gelu_
from featurestore.models.encoder import Encoder
from featurestore.models.mert import MertEncoder

TOLERANCE = 1e-4
"""Largest difference from the plain forward that counts as rounding, relative to a state's largest value."""

_PROBE_SAMPLES = 6_000

logger = logging.getLogger("featurestore")


def accelerated(encoder: Encoder) -> Encoder:
    """The fastest exact form of an encoder on the CPU.

    Parameters
    ----------
    encoder : Encoder
        On the CPU.

    Returns
    -------
    Encoder
        A `CpuEngine` for a `MertEncoder` if both give the same hidden states of a short probe, or else `encoder`
        itself. That they differ is said through the logger "featurestore".
    """
    if not isinstance(encoder, MertEncoder):
        return encoder
    engine = CpuEngine(encoder)
    deviation = engine.deviation()
    if deviation <= TOLERANCE:
        return engine
    logger.warning(
        "%s: the engine for CPUs differs from the plain forward pass (by %.1e of the largest value); "
        "the plain one is used, which is slower",
        encoder.name,
        deviation,
    )
    return encoder


class CpuEngine:
    """A `MertEncoder` arranged for CPUs: an `Encoder` that several threads can use at a time.

    Parameters
    ----------
    model : MertEncoder
        In float32 on the CPU. Its dense weights are shared, not copied.
    """

    def __init__(self, model: MertEncoder) -> None:
        self.model = model
        self.name, self.revision, self.weights_sha256 = model.name, model.revision, model.weights_sha256
        self.sample_rate, self.do_normalize = model.sample_rate, model.do_normalize
        self.layers, self.dim, self.min_samples = model.layers, model.dim, model.min_samples
        with torch.no_grad():
            self._convs = SampleConvs(model.feature_extractor.conv_layers)
            self._position = PositionalConv(model.encoder.pos_conv_embed.conv)
            self._blocks = [_Block(layer) for layer in model.encoder.layers]

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples."""
        return self.model.frames(n_samples)

    def to(self, device: torch.device) -> Any:
        """The engine itself on the CPU; elsewhere the plain model."""
        return self if torch.device(device).type == "cpu" else self.model.to(device)

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Hidden states 0 to `last`, one after the other: those of `MertEncoder.states` up to rounding."""
        wave, last = self.model.prepared(wave, last)
        pre_norm, norm = self.model.config.do_stable_layer_norm, self.model.encoder.layer_norm
        x = self.model.feature_projection(self._convs(wave))
        x = x + self._position(x)
        if not pre_norm:
            x = norm(x)
        yield x
        room: _Room = {}
        for number, block in enumerate(self._blocks[:last], 1):
            x = block(x, room)
            if pre_norm and number == self.layers:
                x = norm(x)
            yield x

    def hidden_states(self, wave: Tensor) -> Tensor:
        """All hidden states, shape (windows, layers + 1, frames, dim)."""
        return torch.stack(list(self.states(wave)), dim=1)

    def deviation(self) -> float:
        """Largest difference from the plain forward pass on a short probe, relative to each state's largest value.

        NaN if one of both is not finite.
        """
        samples = max(_PROBE_SAMPLES, self.min_samples)
        probe = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
        pairs = zip(self.states(probe), self.model.states(probe), strict=True)
        return float(torch.stack([(x - y).abs().max() / y.abs().max() for x, y in pairs]).max())


class _Block:
    """One transformer layer: queries, keys and values by one product, sums and GELU in place."""

    def __init__(self, layer: Any) -> None:
        attention, feed_forward = layer.attention, layer.feed_forward
        self._heads: int = attention.heads
        self._pre_norm: bool = layer.pre_norm
        self._norms: tuple[nn.LayerNorm, nn.LayerNorm] = layer.layer_norm, layer.final_layer_norm
        self._qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self._out: nn.Linear = attention.out_proj
        self._up: nn.Linear = feed_forward.intermediate_dense
        self._down: nn.Linear = feed_forward.output_dense

    def __call__(self, x: Tensor, room: _Room) -> Tensor:
        first, second = self._norms
        if self._pre_norm:
            x = self._attended(first(x), x, room)
            return self._fed_forward(second(x), x, room)
        x = first(self._attended(x, x, room))
        out: Tensor = second(self._fed_forward(x, x, room))
        return out

    def _attended(self, x: Tensor, residual: Tensor, room: _Room) -> Tensor:
        windows, frames, dim = x.shape
        qkv = _dense(x, *self._qkv, room).view(windows, frames, 3, self._heads, dim // self._heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(query, key, value)
        return _added(residual, heads.transpose(1, 2).reshape(-1, dim), self._out)

    def _fed_forward(self, x: Tensor, residual: Tensor, room: _Room) -> Tensor:
        return _added(residual, gelu_(_dense(x, self._up.weight, self._up.bias, room)), self._down)


_Room = dict[int, Tensor]
"""Memory of what is wide, by its width: what one layer has used serves the next."""


def _dense(x: Tensor, weight: Tensor, bias: Tensor, room: _Room) -> Tensor:
    """A dense layer of x [windows, frames, dim] into memory that is used again, [windows * frames, width]."""
    rows, width = x.flatten(0, 1), len(weight)
    if width not in room:
        room[width] = rows.new_empty(len(rows), width)
    return torch.addmm(bias, rows, weight.T, out=room[width])


def _added(residual: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
    """Residual [windows, frames, dim] plus a dense layer of x [windows * frames, width]."""
    out = residual + layer.bias
    out.flatten(0, 1).addmm_(x, layer.weight.T)
    return out


def _joined(*layers: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weights and biases of several dense layers as those of one, which become views of it: no memory is added."""
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
    for layer, part, offset in zip(layers, weight.chunk(len(layers)), bias.chunk(len(layers)), strict=True):
        layer.weight.data, layer.bias.data = part, offset
    return weight, bias
