"""The forward pass of MERT arranged for CPUs, in less time: the same float32 numbers, or with products in bf16.

What is arranged differently, and what it is worth, is in docs/decisions/050 and 112. It takes operations of torch
alone, and compiles nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import ModelError
from featurestore.models.conformer import ConformerEncoder
from featurestore.models.encoder import Encoder, check_float32
from featurestore.models.kernels.conformers import arrange_conformer
from featurestore.models.kernels.convolutions import (
    PositionalConv,
    SampleConvs,
    ScratchBuffers,
    gelu_,
)
from featurestore.models.kernels.fidelity import Fidelity, check_close, compared, test_signal
from featurestore.models.kernels.products import attention, autocast_on_cpu, product_dtype
from featurestore.models.mert import MertEncoder
from featurestore.models.paging import page_out

TOLERANCE = 1e-4
"""Largest difference from the plain forward that counts as rounding, relative to a state's largest value."""

_SIGNAL_SAMPLES = 6_000

logger = logging.getLogger("featurestore")


def optimize_for_cpu(encoder: Encoder, *, spare_memory: bool = False) -> Encoder:
    """The fastest exact form of an encoder on the CPU.

    For encoders of this library's own it is one that several threads can use at a time, if both give the same
    hidden states of a short signal, or else `encoder` itself. That they differ, or that the engine fails, is said
    through the logger "featurestore". With `spare_memory`, weights that are mapped from a file leave memory as
    soon as they are compared; they are read twice. ModelError is raised if the weights are not float32.
    """
    try:
        engine = _arranged(encoder, torch.float32)
        if engine is encoder:
            return encoder
        difference = deviation(engine, encoder, spare_memory=spare_memory)
    except ModelError:
        raise
    except Exception as error:  # whatever operations of another build of torch, or a changed model, make of it
        found = f"fails ({(str(error) or type(error).__name__).splitlines()[0]})"
    else:
        if difference <= TOLERANCE:
            return engine
        found = f"differs from the plain forward pass (by {difference:.1e} of the largest value)"
    logger.warning("%s: the engine for CPUs %s; the plain one is used, which is slower", encoder.name, found)
    return encoder


def bf16_for_cpu(encoder: Encoder) -> tuple[Encoder, Fidelity]:
    """An encoder with products in bfloat16, and how near all its hidden states are to float32 on a test signal.

    For encoders of this library's own it is one that several threads can use at a time; any other is given back as
    it is, to be run under autocast. ModelError is raised if the weights are not float32, SettingError if a state
    is far from it (`fidelity.LEAST_COSINE`).
    """
    dtype = torch.bfloat16
    fast = _arranged(encoder, dtype)
    waves = test_signal(encoder.sample_rate, encoder.min_samples)
    with torch.inference_mode():
        wanted = list(encoder.states(waves))
        with autocast_on_cpu(dtype if fast is encoder else None):
            found = compared(fast.states(waves), wanted)
    check_close(found, f"{encoder.name} in bfloat16", "precision fp32")
    return fast, found


def _arranged(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """The engine for an encoder; itself if there is none."""
    if isinstance(encoder, MertEncoder):
        return CpuEngine(encoder, dtype)
    return arrange_conformer(encoder, dtype) if isinstance(encoder, ConformerEncoder) else encoder


@torch.no_grad()
def deviation(fast: Encoder, plain: Encoder, *, spare_memory: bool = False) -> float:
    """Largest difference of the states of a short signal, relative to each largest value of the plain encoder's.

    NaN if one of both is not finite.
    """
    samples = max(_SIGNAL_SAMPLES, plain.min_samples)
    signal = torch.randn(1, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    differences = []
    for x, y in zip(fast.states(signal), plain.states(signal), strict=True):
        differences.append((x - y).abs().max() / y.abs().max())
        if spare_memory and isinstance(plain, nn.Module):
            page_out(plain)
    return float(torch.stack(differences).max())


class CpuEngine:
    """A `MertEncoder` arranged for CPUs: an `Encoder` that several threads can use at a time.

    The model is in float32 on the CPU, or ModelError is raised; its dense weights are shared in float32. In
    bfloat16 are the products of the transformer's layers and of all convolutions over samples but the first, if
    `dtype` says so and `products.product_dtype` does not: norms, the residual stream and the positional
    convolution are float32.
    """

    def __init__(self, model: MertEncoder, dtype: torch.dtype = torch.float32) -> None:
        check_float32(model)
        self.model, self.dtype = model, dtype
        self.name, self.revision, self.weights_sha256 = model.name, model.revision, model.weights_sha256
        self.sample_rate, self.do_normalize = model.sample_rate, model.do_normalize
        self.layers, self.dim, self.min_samples = model.layers, model.dim, model.min_samples
        with torch.no_grad():
            self._convs = SampleConvs(model.feature_extractor.conv_layers, dtype)
            self._position = PositionalConv(model.encoder.pos_conv_embed.conv)
            self._blocks = [Block(layer, dtype) for layer in model.encoder.layers]

    def frames(self, n_samples: int) -> int:
        """Frames of a window of `n_samples` samples."""
        return self.model.frames(n_samples)

    def to(self, device: torch.device) -> Any:
        """The engine itself on the CPU; elsewhere the plain model."""
        return self if torch.device(device).type == "cpu" else self.model.to(device)

    @torch.no_grad()
    def states(self, wave: Tensor, last: int | None = None) -> Iterator[Tensor]:
        """Hidden states 0 to `last`, one after the other: those of `MertEncoder.states` up to rounding."""
        scratch = ScratchBuffers()
        wave, last = self.model.prepared(wave, last)
        pre_norm, norm = self.model.config.do_stable_layer_norm, self.model.encoder.layer_norm
        x = self.model.feature_projection(self._convs(wave, scratch))
        x = x + self._position(x)
        if not pre_norm:
            x = norm(x)
        yield x
        for number, block in enumerate(self._blocks[:last], 1):
            x = block(x, scratch)
            if pre_norm and number == self.layers:
                x = norm(x)
            yield x

    def hidden_states(self, wave: Tensor) -> Tensor:
        """All hidden states, shape (windows, layers + 1, frames, dim)."""
        return torch.stack(list(self.states(wave)), dim=1)


class Block:
    """One transformer layer: sums and GELU in place, what is large in memory that is used again."""

    def __init__(self, layer: Any, dtype: torch.dtype = torch.float32) -> None:
        attention, feed_forward = layer.attention, layer.feed_forward
        self._heads: int = attention.heads
        self._pre_norm: bool = layer.pre_norm
        self._norms: tuple[nn.LayerNorm, nn.LayerNorm] = layer.layer_norm, layer.final_layer_norm
        weights = attention.out_proj.weight, feed_forward.output_dense.weight
        self._dtype = dtype = product_dtype(dtype, *(weight.shape[1] for weight in weights))
        self._query, self._key, self._value, self._out, self._up, self._down = (
            dense.weight.T.to(dtype)
            for dense in (
                *(attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj),
                *(feed_forward.intermediate_dense, feed_forward.output_dense),
            )
        )
        self._query_bias = attention.q_proj.bias.to(dtype)
        self._up_bias = feed_forward.intermediate_dense.bias.to(dtype)
        self._out_bias = _out_bias(attention.out_proj, attention.v_proj)
        self._down_bias: Tensor = feed_forward.output_dense.bias

    def __call__(self, x: Tensor, scratch: ScratchBuffers) -> Tensor:
        first, second = self._norms
        if self._pre_norm:
            x = self._attended(first(x), x, scratch)
            return self._fed_forward(second(x), x, scratch)
        x = first(self._attended(x, x, scratch))
        out: Tensor = second(self._fed_forward(x, x, scratch))
        return out

    def _attended(self, x: Tensor, residual: Tensor, scratch: ScratchBuffers) -> Tensor:
        windows, frames, dim = x.shape
        rows, dtype = x.view(-1, dim).to(self._dtype), self._dtype
        query = scratch.take("query", len(rows), dim, dtype)
        qkv = [
            torch.addmm(self._query_bias, rows, self._query, out=query),
            torch.mm(rows, self._key, out=scratch.take("medium", len(rows), dim, dtype)),
            torch.mm(rows, self._value, out=scratch.take("value", len(rows), dim, dtype)),
        ]
        shape = (windows, frames, self._heads, dim // self._heads)
        query, key, value = (part.view(shape).transpose(1, 2) for part in qkv)
        heads = attention(query, key, value)
        return _added(residual, heads.transpose(1, 2).reshape(-1, dim), self._out, self._out_bias)

    def _fed_forward(self, x: Tensor, residual: Tensor, scratch: ScratchBuffers) -> Tensor:
        rows = x.view(-1, x.shape[-1]).to(self._dtype)
        inner = scratch.take("large", len(rows), self._up.shape[1], self._dtype)
        gelu_(torch.addmm(self._up_bias, rows, self._up, out=inner))
        return _added(residual, inner, self._down, self._down_bias)


def _added(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Residual [windows, frames, dim] plus a dense layer of x [windows * frames, width]; float32."""
    out = residual + bias
    rows = out.view(-1, out.shape[-1])
    if weight.dtype == out.dtype:
        rows.addmm_(x, weight)
    else:
        rows += torch.mm(x, weight)
    return out


def _out_bias(out: nn.Linear, value: nn.Linear) -> Tensor:
    """The bias of the output, and of the values, which passes through a softmax, as its weights sum to one.

    The bias of the keys adds the same to all that a softmax compares: it is needed nowhere.
    """
    return out.bias + out.weight @ value.bias
