import pytest
import torch

from featurestore.models import load_model, save_random_checkpoint


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a small checkpoint with the frames of MERT v1."""
    return save_random_checkpoint(tmp_path_factory.mktemp("tiny"), shape="tiny")


@pytest.fixture(scope="session")
def model(tiny):
    return load_model(tiny)
