"""fs-extract config: what a build would be done with, and where each value comes from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fs_extract.build import GROUPS, build
from fs_extract.command import Command
from fs_extract.config_file import path_of
from fs_extract.console import Console, print_json, printable
from fs_extract.parameters import GivenStore

_OPTIONS = [
    option
    for option in build.params
    if isinstance(option, click.Option) and not option.is_eager and option.name != "as_json"
]

_DEFAULT = re.compile(r"\[default: (?:(?:as in|the one)[^,\]]*, or )?([^\]]*)\]")
"""What the help of an option says of its default."""


@click.command(
    cls=Command,
    table="build",
    params=[*_OPTIONS],
    groups=GROUPS,
    examples={
        "what the next build of a store is done with": "config features.zarr",
        "whether an option wins over the environment": "config features.zarr --device cuda",
    },
)
@click.argument("store", type=GivenStore(), required=False)
@click.pass_context
def config(ctx: click.Context, /, store: Path | None, **settings: Any) -> int:
    """Show every option of build with its value, and where that comes from.

    A flag comes before the environment (FEATURESTORE_LAYERS), that before featurestore.toml, that before what
    STORE was built with, and that before the default.
    """
    console: Console = ctx.obj
    recorded = {} if store is None else _recorded(store, settings)
    places = {
        ParameterSource.COMMANDLINE: "flag",
        ParameterSource.ENVIRONMENT: "environment",
        ParameterSource.DEFAULT_MAP: str(path_of(console)),
    }
    rows: dict[str, dict[str, Any]] = {}
    for option in _OPTIONS:
        name = str(option.name)
        source = ctx.get_parameter_source(name) or ParameterSource.DEFAULT
        value, place = settings[name], places.get(source, "default")
        if place == "default" and recorded.get(name) is not None:
            value, place = recorded[name], "store"
        elif value is None and (found := _DEFAULT.search(option.help or "")):
            value = found[1]
        rows[max(option.opts, key=len)] = {"value": _plain(value), "from": place}
    if console.as_json:
        print_json(rows)
        return 0
    shown = [(name, _typed(row["value"]), row["from"]) for name, row in rows.items()]
    width = [max(len(row[column]) for row in shown) for column in (0, 1)]
    for name, value, place in shown:
        click.echo(printable(f"{name:<{width[0]}}  {value:<{width[1]}}  {place}"))
    return 0


def _recorded(store: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from featurestore.pipeline.building import open_existing
    from featurestore.pipeline.recorded import recorded_options

    if (there := open_existing(store)) is None:
        return {}
    return recorded_options(there, {**settings, "mixed_precision": not settings["no_mixed_precision"]})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _typed(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)
