"""SIGKILL at any system call: every reader sees whole tracks, and the next writer repairs."""

import pytest

from .operations import OPERATIONS
from .profiles import NIGHTLY, QUICK, TYPICAL, explorations

LONG = {"life", "pieces and files"}
NAMES = [name for name in OPERATIONS if NIGHTLY or name not in LONG]
SOME = NAMES if NIGHTLY else TYPICAL[1:4] if QUICK else TYPICAL
# Nothing changes between the end of one system call and the beginning of the next.
MOMENTS = ("before", "torn") if QUICK else ("before", "torn", "after")


@pytest.mark.parametrize(
    "operation", explorations("interruptions.kill", NAMES, TYPICAL if QUICK else NAMES, moments=MOMENTS)
)
def test_a_writer_is_killed_at_every_step(operation, findings):
    assert findings.points >= len(findings.steps) * (len(MOMENTS) - 1)


@pytest.mark.parametrize("operation", explorations("interruptions.pause", SOME))
def test_another_writer_comes_and_goes_at_every_step(operation, findings):
    pass


@pytest.mark.parametrize("operation", explorations("interruptions.interrupt", SOME))
def test_ctrl_c_at_every_step_leaves_nothing_behind_once_the_writer_is_closed(operation, findings):
    pass
