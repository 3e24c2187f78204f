"""Products in half precision on a CPU, clear of what oneDNN gets wrong on processors with AMX.

NaN of one row of a bf16 product reaches others if the inner length is no multiple of 32, up to oneDNN 3.14: it
reads on beyond (uxlfoundation/oneDNN#5717). Grouped convolutions in half are wrong (docs/decisions/111).
"""

from __future__ import annotations

import math
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_INNER = 32
_MATRICES = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Products, and which argument is the first matrix."""

_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
_WHOLE = ("aten::_native_multi_head_attention", "aten::_transformer_encoder_layer_fwd")
"""What has products inside that cannot be padded."""

_PRODUCT = (512, 768), (768, 768)
_TRIES = 5


def bf16_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The instructions of this processor for bfloat16 products, "amx_bf16" first; None if it has none.

    What is no x86 is asked of torch, which says "bf16".
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        try:
            flags = set(re.findall(r"\w+", cpuinfo.read_text()))
        except OSError:  # not Linux
            flags = {name for name, there in torch.cpu.get_capabilities().items() if there is True}
        return next((name for name in ("amx_bf16", "avx512_bf16") if name in flags), None)
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


@lru_cache(maxsize=1)
def bf16_gain() -> float:
    """How many times as fast as in float32 this processor multiplies in bfloat16; 0 without `bf16_products`.

    It is measured here and now, by a product of MERT's shape (least times of `_TRIES`, in turns). Having the
    products does not make them fast: Intel's processors whose AMX a virtual machine hides multiply in bfloat16 by
    `avx512_bf16`, at half the speed of float32.
    """
    if bf16_products() is None:
        return 0.0
    spent: dict[torch.dtype, float] = {}
    pairs = [[torch.ones(size, dtype=dtype) for size in _PRODUCT] for dtype in (torch.float32, torch.bfloat16)]
    with torch.inference_mode():
        for _ in range(1 + _TRIES):
            for a, b in pairs:
                began = time.perf_counter()
                torch.mm(a, b)
                spent[a.dtype] = min(spent.get(a.dtype, 1e9), time.perf_counter() - began)
    return spent[torch.float32] / spent[torch.bfloat16]


def product_dtype(dtype: torch.dtype, *inner: int) -> torch.dtype:
    """`dtype`; float32 instead of bfloat16 where an inner length of the products is no multiple of 32."""
    return torch.float32 if dtype == torch.bfloat16 and any(map(_missing, inner)) else dtype


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [window, head, frame, width] each; in bf16 on a CPU by inner lengths that are right."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    padded, options = _padded(query, key, value)
    heads: Tensor = F.scaled_dot_product_attention(*padded, **options)
    return heads[..., : value.shape[-1]]


@contextmanager
def autocast_on_cpu(dtype: torch.dtype | None) -> Iterator[None]:
    """Half precision by autocast, for networks that know nothing of what is wrong; nothing if `dtype` is None."""
    if dtype is None:
        yield
        return
    with torch.autocast("cpu", dtype=dtype), _RightProducts():  # type: ignore[no-untyped-call]
        yield


def _missing(length: int) -> int:
    """How much an inner length lacks to a multiple of 32."""
    return -length % _INNER


def _padded(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Attention with wider heads, and with more keys, which a mask hides: tensors and options."""
    frames, width = key.shape[-2:]
    more, wider = _missing(frames), (0, _missing(width))
    mask = query.new_zeros(1, 1, 1, frames) if mask is None else mask.expand(*mask.shape[:-1], frames)
    key, value = F.pad(key, (*wider, 0, more)), F.pad(value, (0, _missing(value.shape[-1]), 0, more))
    options = {"attn_mask": F.pad(mask, (0, more), value=-torch.inf), "scale": scale or width**-0.5}
    return (F.pad(query, wider), key, value), options


class _RightProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Pads matrices to inner lengths that are right, and has in float32 what cannot be padded."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = operation._schema.name, kwargs or {}
        half = next((x.dtype for x in args if isinstance(x, Tensor) and x.is_floating_point()), torch.float32)
        if operation._can_decompose():  # autograd would have taken it apart
            with self:
                return operation.decompose(*args, **kwargs)
        if half == torch.bfloat16 and name in _MATRICES:
            first = _MATRICES[name]
            one, other, *rest = args[first:]
            if more := _missing(one.shape[-1]):
                args = *args[:first], F.pad(one, (0, more)), F.pad(other, (0, 0, 0, more)), *rest
        elif half == torch.bfloat16 and name == _ATTENTION:
            query, key, value, *others = args
            if not any(others):  # neither dropout nor causal
                tensors, options = _padded(query, key, value, kwargs.get("attn_mask"), kwargs.get("scale"))
                out, sums = operation(*tensors, **options)
                return out[..., : value.shape[-1]], sums
            return _in_float32(operation, args, kwargs, half)
        elif half == torch.bfloat16 and name in _WHOLE:
            return _in_float32(operation, args, kwargs, half)
        elif half in (torch.bfloat16, torch.float16) and name == "aten::convolution":
            inner, groups = math.prod(args[1].shape[1:]), args[-1]
            if groups > 1 or product_dtype(half, inner) != half:
                return _in_float32(operation, args, kwargs, half)
        return operation(*args, **kwargs)


def _in_float32(operation: Any, args: Any, kwargs: Any, half: torch.dtype) -> Any:
    whole: Any = tree_map_only(Tensor, lambda x: x.float() if x.dtype == half else x, (args, kwargs))
    return tree_map_only(Tensor, lambda x: x.to(half), operation(*whole[0], **whole[1]))
