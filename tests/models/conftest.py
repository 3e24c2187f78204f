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
