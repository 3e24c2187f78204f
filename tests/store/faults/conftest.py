"""Explorations run in processes beside the tests that wait for them: two, or one for each worker of xdist."""

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


class Explorations:
    """Explorations, each begun when somebody first wants it, by what a test is marked with."""

    def __init__(self, pool):
        self._pool = pool
        self._begun = {}

    def begin(self, mark):
        key = repr((mark.args, mark.kwargs))
        if key not in self._begun:
            self._begun[key] = self._pool.submit(worker.call, *mark.args, **mark.kwargs)
        return self._begun[key]


@pytest.fixture(scope="session")
def explored(request):
    """What the chosen tests wait for: all begun at once, or, as a worker of xdist has but some, one by one."""
    is_one_of_many = hasattr(request.config, "workerinput")
    with processes(1 if is_one_of_many else min(2, os.cpu_count() or 1)) as pool:
        explorations = Explorations(pool)
        for item in () if is_one_of_many else request.session.items:
            if mark := item.get_closest_marker("explores"):
                explorations.begin(mark)
        yield explorations
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def findings(request, explored):
    """What the exploration of a test found: nothing that must not be, after each of its points."""
    found = explored.begin(request.node.get_closest_marker("explores")).result()
    assert not found.violations, "\n\n".join(found.violations[:5])
    assert found.points >= len(found.steps) > 0
    return found
