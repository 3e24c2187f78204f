import contextlib
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from featurestore.models import save_random_checkpoint

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.fixture(scope="session")
def golden():
    return GOLDEN


@pytest.fixture
def tiny(tmp_path):
    """A folder of its own with a small checkpoint, to be tampered with."""
    return save_random_checkpoint(tmp_path / "tiny", shape="tiny")


@pytest.fixture(scope="session")
def not_finite():
    """Of constant levels with a ripple, clipped or not: those whose states an encoder makes infinite or NaN."""

    def find(encoder, *, levels, ripples, clips):
        cases = list(itertools.product(levels, ripples, clips))
        wave = torch.sin(torch.arange(4_800) * 0.1)
        waves = [level + ripple * wave for level, ripple, _ in cases]
        waves = [x.clamp(-1, 1) if clip else x for x, (_, _, clip) in zip(waves, cases, strict=True)]
        finite = torch.isfinite(encoder.hidden_states(torch.stack(waves))).flatten(1).all(dim=1)
        return [case for case, ok in zip(cases, finite.tolist(), strict=True) if not ok]

    return find


class _InnerLengths(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.split("::")[1].removesuffix("_")
        first = args[1] if name in ("addmm", "baddbmm") else next(iter(args), None)
        if isinstance(first, torch.Tensor) and first.dtype == torch.bfloat16:
            if "attention" in name:
                self._seen.setdefault("attention", set()).update([first.shape[-1], args[1].shape[-2]])
            elif "convolution" in name or "conv" in name:
                self._seen.setdefault("convolution", set()).add(math.prod(args[1].shape[1:]))
            elif any(word in name for word in ("mm", "matmul", "linear")):
                self._seen.setdefault(name, set()).add(first.shape[-1])
        return operation(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def inner_lengths():
    """Context that notes the inner lengths of products in bf16, by what multiplies."""

    @contextlib.contextmanager
    def watch():
        seen = {}
        with _InnerLengths(seen):
            yield seen

    return watch


@pytest.fixture(scope="session")
def are_right():
    """Whether products are right with AMX, and there are some."""
    return lambda seen: bool(seen) and not [x for lengths in seen.values() for x in lengths if x % 32]
