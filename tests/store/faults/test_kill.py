"""SIGKILL at any system call: every reader sees whole tracks, and the next writer repairs."""

import pytest

from . import source
from .operations import OPERATIONS
from .profiles import NIGHTLY, QUICK, TYPICAL, explorations

LONG = {"life", "pieces and files"}
NAMES = [name for name in OPERATIONS if NIGHTLY or name not in LONG]
SAMPLED = [] if NIGHTLY else sorted(LONG)
SOME = NAMES if NIGHTLY else TYPICAL[1:4] if QUICK else TYPICAL
# Nothing changes between the end of one system call and the beginning of the next.
MOMENTS = ("before", "torn") if QUICK else ("before", "torn", "after")
KILLS = [
    *explorations("interruptions.kill", NAMES, TYPICAL if QUICK else NAMES, moments=MOMENTS),
    *explorations("interruptions.kill", SAMPLED, moments=MOMENTS, sample=True),
]


@pytest.mark.parametrize("operation", KILLS)
def test_a_writer_is_killed_at_every_step(operation, findings):
    assert findings.points >= len(findings.steps) * (len(MOMENTS) - 1)


@pytest.mark.timeout(3600)
def test_a_writer_is_killed_at_every_call_for_a_change(explored):
    """If this fails for a new step: add an operation to operations.py that comes to it."""
    marks = [mark for kill in KILLS for mark in kill.marks if mark.name == "explores"]
    killed = set().union(*(explored.begin(mark).result().sites for mark in marks))
    missed = {
        f"{module}:{line} {name}"
        for (module, line), (last, name) in source.call_sites().items()
        if not any((module, i) in killed for i in range(line, last + 1))
    }
    assert not missed


@pytest.mark.parametrize("operation", explorations("interruptions.pause", SOME))
def test_another_writer_comes_and_goes_at_every_step(operation, findings):
    pass


@pytest.mark.parametrize("operation", explorations("interruptions.interrupt", SOME))
def test_ctrl_c_at_every_step_leaves_nothing_behind_once_the_writer_is_closed(operation, findings):
    pass
