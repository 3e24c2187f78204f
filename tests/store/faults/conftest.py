"""Explorations run in two processes beside the tests that wait for them."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from . import worker


def pytest_configure(config):
    config.addinivalue_line("markers", "explores(function, *args): what the fixture `findings` is to find out")


def processes(number):
    return ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), worker.begin)


@pytest.fixture(scope="session")
def quick():
    """A process for what does not take long."""
    with processes(1) as pool:
        yield pool


@pytest.fixture(scope="session")
def explorations(request):
    """What the chosen tests wait for, all begun at once: exploration by id of the test."""
    marked = [(item, item.get_closest_marker("explores")) for item in request.session.items]
    with processes(min(2, os.cpu_count() or 1)) as pool:
        yield {
            item.nodeid: pool.submit(worker.call, *mark.args, **mark.kwargs)
            for item, mark in marked
            if mark is not None
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def findings(request, explorations):
    """What the exploration of a test found: nothing that must not be, after each of its points."""
    found = explorations[request.node.nodeid].result()
    assert not found.violations, "\n\n".join(found.violations[:5])
    assert found.points >= len(found.steps) > 0
    return found
