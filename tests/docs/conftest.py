"""What the pages and the docstrings may assume to be there."""

import pytest
from pages import QUICK_START, run_page, working_in


@pytest.fixture(autouse=True)
def _in_the_environment(request, monkeypatch):
    """Credentials of an S3 server on loopback with a bucket, where something is run."""
    if request.node.get_closest_marker("slow"):
        for name, value in request.getfixturevalue("object_server").environment.items():
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def preloaded(preloaded):
    preloaded.load("sklearn.cluster", "sklearn.linear_model", "sklearn.model_selection")  # of labels and probes
    return preloaded


@pytest.fixture(scope="session")
def after_the_quick_start(tmp_path_factory):
    """What the quick start leaves behind: `music` and `features.zarr`."""
    with working_in(tmp_path_factory.mktemp("quick-start")) as folder:
        run_page(QUICK_START)
    return folder
