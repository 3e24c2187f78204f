import pytest
from samples import SPEC

from featurestore import StoreWriter


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.zarr"


@pytest.fixture
def writer(path):
    with StoreWriter(path, spec=SPEC, durable=False) as writer:
        yield writer
