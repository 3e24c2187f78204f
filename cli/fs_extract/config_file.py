"""Options from a file: featurestore.toml, for all commands or for one."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from fs_extract.console import Console

NAME = "featurestore.toml"


def closest(typed: str, known: Iterable[str]) -> str:
    """What a message about an unknown name says of the one that is closest."""
    found = difflib.get_close_matches(typed, list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def path_of(console: Console) -> Path:
    """The file that options come from, which need not be there."""
    return console.config_file or Path(NAME)


def defaults_of(console: Console, ctx: click.Context) -> dict[str, Any]:
    """Options of a command as a file has them, by the names of its parameters.

    The file has the long names of options without their dashes; those at its top are meant for every command that
    has them, those in a table for the command of its name, and come before the others.

    Raises
    ------
    UsageError
        If the file cannot be read, or names an option or a command that does not exist.
    """
    path = path_of(console)
    if console.config_file is None and not path.is_file():
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--config-file {path} cannot be read: {error.strerror}", ctx) from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise click.UsageError(f"{path} is no TOML: {error}", ctx) from None
    root = ctx.find_root().command
    commands = root.commands.values() if isinstance(root, click.Group) else [ctx.command]
    options = {str(command.name): _options(command) for command in commands if _table(command) == command.name}
    every = {name for some in options.values() for name in some}
    for name, value in values.items():
        if isinstance(value, dict):
            if name not in options:
                raise click.UsageError(f"{path}: no command {name!r}.{closest(name, options)}", ctx)
            _check(path, value, options[name], f"{name}.", ctx)
        else:
            _check(path, {name: value}, every, "", ctx)
    own = _options(ctx.command)
    shared = {name: value for name, value in values.items() if not isinstance(value, dict) and name in own}
    mine = values.get(_table(ctx.command), {})
    return {str(own[name].name): _plain(own[name], value) for name, value in {**shared, **mine}.items()}


def _table(command: click.Command) -> str:
    return str(getattr(command, "table", command.name))


def _options(command: click.Command) -> dict[str, click.Option]:
    return {
        max(option.opts, key=len).removeprefix("--"): option
        for option in command.params
        if isinstance(option, click.Option) and not (option.name == "config_file" or option.is_eager)
    }


def _check(path: Path, values: Mapping[str, Any], known: Iterable[str], where: str, ctx: click.Context) -> None:
    known = list(known)
    for name, value in values.items():
        if name not in known:
            raise click.UsageError(f"{path}: no option {where + name!r}.{closest(name, known)}", ctx)
        if isinstance(value, dict):
            raise click.UsageError(f"{path}: {where}{name} is an option, not a table", ctx)


def _plain(option: click.Option, value: Any) -> Any:
    """A value of TOML as it would be typed."""
    if isinstance(value, list) and not option.multiple:
        return ",".join(map(str, value))
    if option.multiple:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return value if isinstance(value, bool) else str(value)
