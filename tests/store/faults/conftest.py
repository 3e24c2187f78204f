"""Explorations run in two processes beside the tests that wait for them."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from . import worker


def pytest_configure(config):
    config.addinivalue_line("markers", "explores(function, *args): what the fixture `findings` is to find out")


@pytest.fixture(scope="session")
def pool():
    with ProcessPoolExecutor(
        min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn"), worker.begin
    ) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def explorations(request, pool):
    """What the chosen tests wait for, all begun at once: exploration by id of the test."""
    marked = [(item, item.get_closest_marker("explores")) for item in request.session.items]
    return {
        item.nodeid: pool.submit(worker.call, *mark.args, **mark.kwargs)
        for item, mark in marked
        if mark is not None
    }


@pytest.fixture
def findings(request, explorations):
    """What the exploration of a test found: nothing that must not be, after each of its points."""
    found = explorations[request.node.nodeid].result()
    assert not found.violations, "\n\n".join(found.violations[:5])
    assert found.points >= len(found.steps) > 0
    return found
