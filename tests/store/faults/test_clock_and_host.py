"""Clocks that jump and hosts that change their name lose nothing, and nobody who is at work is swept away."""

import os
import time

import pytest

from featurestore.store.commit.flock import lock_file, unlock
from featurestore.store.paths import StorePaths

from .conditions import STORE, away, writer
from .operations import OPERATIONS
from .profiles import NIGHTLY, QUICK, explorations

NAMES = OPERATIONS if NIGHTLY else ["overwrite, other kinds"]
DAY = 86_400


@pytest.mark.parametrize(
    "operation", explorations("interruptions.kill", NAMES, years=-1, host="elsewhere", moments=["before"])
)
def test_a_dead_writer_is_survived_in_another_time_and_place(operation, findings):
    pass


ELSEWHERE = [
    parameter
    for years, host in ((1, None), (-1, None), (1, "elsewhere"), (-1, "elsewhere"))
    for parameter in explorations(
        "interruptions.pause", OPERATIONS if NIGHTLY else ["create"], years=years, host=host, sample=QUICK
    )
]


@pytest.mark.parametrize("operation", ELSEWHERE)
def test_a_writer_at_work_is_left_alone_by_one_in_another_time_and_place(operation, findings):
    pass


@pytest.mark.parametrize(
    ("host", "age", "lives", "swept"),
    [
        (None, 0, False, True),
        (None, 0, True, False),
        (None, 400 * DAY, True, False),
        ("elsewhere", 0, False, False),
        ("elsewhere", 2 * DAY, False, True),
        ("elsewhere", 2 * DAY, True, False),
        ("elsewhere", -400 * DAY, False, False),
    ],
)
@pytest.mark.parametrize("locked_before", [False, True])
def test_what_is_swept(host, age, lives, swept, locked_before, tmp_path):
    """Staging of a dead writer, at once; of another host, whose locks may be invisible, a day later."""
    with away(host=host), writer(tmp_path) as other:
        name = other.session.staging.path.name
    folder = StorePaths(tmp_path / STORE).staging / name
    folder.mkdir()
    lock = None
    if lives or locked_before:  # a writer may die before it has the lock
        lock = lock_file(folder / "owner.lock")
    if lock is not None and not lives:
        unlock(lock)
    os.utime(folder, (time.time() - age, time.time() - age))
    with writer(tmp_path):
        assert folder.exists() != swept
    if lives:
        unlock(lock)
