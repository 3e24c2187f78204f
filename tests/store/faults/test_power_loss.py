"""Loss of power at any moment: what was published survives, and nothing is half there."""

import pytest

from .operations import OPERATIONS
from .profiles import LONG_OF_BUNDLES, NIGHTLY, QUICK, TYPICAL, explorations

LEFT_OUT = set() if NIGHTLY else {"pieces and files"} | (LONG_OF_BUNDLES if QUICK else set())
SAMPLED = [name for name in OPERATIONS if QUICK and name not in LEFT_OUT.union(TYPICAL)]
NAMES = [name for name in OPERATIONS if name not in LEFT_OUT.union(SAMPLED)]
WAYS = 20 if NIGHTLY else 2 if QUICK else 5

LOOSE = NAMES if NIGHTLY else ["overwrite, other kinds", "pack, more tracks"]


POWER_LOSSES = [
    *explorations("interruptions.lose_power", NAMES, NAMES if NIGHTLY else [], ways=WAYS),
    *explorations("interruptions.lose_power", SAMPLED, ways=WAYS, sample=True),
]


@pytest.mark.parametrize("operation", POWER_LOSSES)
def test_power_is_lost_after_every_step(operation, findings):
    assert findings.points >= WAYS * len(findings.steps)


@pytest.mark.parametrize("operation", explorations("interruptions.lose_power", LOOSE, ways=WAYS + 2, loose=True))
def test_even_if_a_folder_forgets_changes_in_any_order(operation, findings):
    pass
