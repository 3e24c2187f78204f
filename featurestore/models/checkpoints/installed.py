"""Encoders that installed packages offer under a name, by the entry point group `GROUP`. Imports no torch."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from featurestore.errors import ModelError

GROUP = "featurestore.encoders"
"""Entry points of this group are names of models; each refers to a callable that gives an encoder."""


def offered(name: str | None = None) -> list[EntryPoint]:
    """Entry points of this name, or all; nothing is imported."""
    return list(entry_points(group=GROUP) if name is None else entry_points(group=GROUP, name=name))


def packages(points: list[EntryPoint]) -> str:
    """The packages that offer them, with their versions."""
    return " and ".join(f"{x.dist.name} {x.dist.version}" if x.dist else x.value for x in points)


def load_offered(name: str, points: list[EntryPoint]) -> Any:
    """Make the encoder of a name; it is not checked.

    ModelError is raised if several packages offer the name, or the package's code raises.
    """
    if len(points) > 1:
        raise ModelError(
            f"`model` {name!r} is offered by several installed packages, {packages(points)}: uninstall all but one"
        )
    try:
        return points[0].load()()
    except (Exception, SystemExit) as error:  # whatever a package's code raises
        raise ModelError(
            f"`model` {name!r} of the installed package {packages(points)} cannot be loaded: "
            f"{points[0].value} raised {type(error).__name__}: {error}"
        ) from error
