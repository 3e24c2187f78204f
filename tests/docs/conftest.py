"""What the pages and the docstrings may assume to be there."""

import pytest
from pages import QUICK_START, run_page, working_in


@pytest.fixture(scope="session")
def after_the_quick_start(tmp_path_factory):
    """What the quick start leaves behind: `music` and `features.zarr`."""
    with working_in(tmp_path_factory.mktemp("quick-start")) as folder:
        run_page(QUICK_START)
    return folder
