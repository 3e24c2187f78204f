"""Types of arguments and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurestore.addresses import local_path, store_url


class GivenPath(click.Path):
    """A path that is not empty: an empty one, of a variable that is not set, would be the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        try:
            return super().convert(local_path(value), param, ctx)
        except ValueError as error:
            self.fail(f"{value} is {error}", param, ctx)


class GivenStore(GivenPath):
    """A store: a path, or the address of one in a bucket or on a web server."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or the address."""
        try:
            return store_url(value) or super().convert(value, param, ctx)
        except ValueError as error:
            self.fail(f"this is {error}", param, ctx)


class Layers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Layers as "7", "4,7", "0-12" or "all"."""

    name = "layers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | None:
        """Layers of a text, ascending; None for all."""
        if isinstance(value, tuple):
            return value
        if value == "all":
            return None
        found: set[int] = set()
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                self.fail(f"{value!r} is no list of layers like 7 or 4,7 or 0-12", param, ctx)
            if len(last or first) > 4:
                self.fail(f"{value!r} names layers that no model has", param, ctx)
            if int(last or first) < int(first):
                self.fail(f"{part.strip()!r} names no layer", param, ctx)
            found.update(range(int(first), int(last or first) + 1))
        return tuple(sorted(found))


class SegmentDuration(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of seconds, "auto" or "full"."""

    name = "auto|seconds|full"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Seconds of a text, or the word."""
        if value in ("auto", "full"):
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is no number of seconds, nor auto or full", param, ctx)


class TrackingUri(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Where MLflow keeps its runs; empty for its default."""

    name = "uri"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The URI, which is no SOURCE that stands behind the option."""
        if value and ":" not in value and value != "databricks":
            self.fail(
                f"{value!r} is no URI like sqlite:///runs.db: put --mlflow after SOURCE and STORE", param, ctx
            )
        return str(value)
