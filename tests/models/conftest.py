import itertools
from pathlib import Path

import pytest
import torch

from featurestore.models import save_random_checkpoint

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
