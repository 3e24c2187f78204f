"""How much is looked at, of HYPOTHESIS_PROFILE: `default` what breaks most easily, `ci` more, `nightly` all."""

import os
from collections.abc import Iterable
from typing import Any

import pytest

from .operations import OPERATIONS

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "default")
NIGHTLY = PROFILE == "nightly"
QUICK = PROFILE == "default"

SWAPPING = [
    name for name in OPERATIONS if name.startswith(("overwrite", "pieces", "pack, ", "recover", "repair", "life"))
]
"""Operations that exchange folders or make links, where the file system can."""

LONG_OF_BUNDLES = {
    "pack, a dead bundle",
    "seal, fixed folders",
    "seal, a third time",
    "seal, and overwrite meanwhile",
    "seal, and remove meanwhile",
    "seal, not marked",
    "seal, worn",
    "unseal, after removing",
    "unseal, beside a copy",
}
"""Operations of many steps, most of which are those of others."""

TYPICAL = [
    "new track",
    "overwrite, other kinds",
    "remove",
    "pack, after overwriting",
    "create",
    "recover, raw placed",
    "remove, sealed",
]


def explorations(function: str, names: Iterable[str], plain: Iterable[str] = (), **options: Any) -> list[Any]:
    """Parameters of a test that waits for `findings`: operations, and operations on a plain file system."""
    chosen = [(name, False) for name in names] + [(name, True) for name in plain if name in SWAPPING]
    return [
        pytest.param(
            name,
            marks=[
                pytest.mark.explores(function, name, plain=without, **options),
                pytest.mark.timeout(3600),
                pytest.mark.slow,
            ],
            id=f"{name}, two renames and no links" if without else name,
        )
        for name, without in chosen
    ]
