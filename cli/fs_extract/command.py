"""Commands: options in groups, examples, settings from a file, and errors in the words of the command line."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from typing import Any

import click

from featurestore.errors import FeatureStoreError
from fs_extract.config_file import defaults_of
from fs_extract.console import Console
from fs_extract.parameters import GivenPath

_SETTINGS = {
    "auto_envvar_prefix": "FEATURESTORE",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "show_default": True,
}

_SETTING = re.compile(r"`([a-z][a-z_.]*)(?:=([^`]+))?`")
"""How a message of the library names a setting: `overlap`, or `dtype='float16'`."""


class ReaderGoneError(Exception):
    """The reader of our output has seen enough."""


class RefusedError(click.ClickException):
    """What the library has raised, in the words of the command line."""


def _set(ctx: click.Context, option: click.Parameter, value: Any) -> None:
    """Set what an option says of the console; both the group and the command may have said it."""
    console, name = ctx.ensure_object(Console), str(option.name)
    setattr(console, name, max(getattr(console, name), value))


def _set_defaults(ctx: click.Context, _: click.Parameter, value: Any) -> None:
    """Take options that are not given from a file; the command's own file comes before the group's."""
    console = ctx.ensure_object(Console)
    console.config_file = value or console.config_file
    if not (isinstance(ctx.command, click.Group) or ctx.resilient_parsing):
        ctx.default_map = defaults_of(console, ctx)


def _console_options() -> list[click.Option]:
    shown: dict[str, Any] = {"expose_value": False, "is_eager": True, "show_default": False}
    no_progress = "No progress bar on a terminal, and no lines about it elsewhere."
    file = "TOML file with options that are not given.  [default: featurestore.toml here, if there is one]"
    return [
        click.Option(["-v", "--verbose"], count=True, help="Tell more; twice: even more.", callback=_set, **shown),
        click.Option(["-q", "--quiet"], is_flag=True, help="Tell errors only.", callback=_set, **shown),
        click.Option(["--no-progress"], is_flag=True, help=no_progress, callback=_set, **shown),
        click.Option(["--config-file"], type=GivenPath(), help=file, callback=_set_defaults, **shown),
    ]


def _json_option() -> click.Option:
    return click.Option(
        ["--json", "as_json"],
        is_flag=True,
        envvar="FEATURESTORE_JSON",
        help="Print the result as JSON.",
        callback=_set,
        expose_value=False,
    )


class Command(click.Command):
    """A command that knows -v, -q and the like, and takes its options from FEATURESTORE_... and a file as well.

    Parameters
    ----------
    settings : mapping of str to str, optional
        Options of settings that the library calls otherwise.
    groups : mapping of str to sequence of str, optional
        Titles, and the options that stand below each in the help; all others come last.
    examples : mapping of str to str, optional
        What one may want, and what to type.
    has_json : bool
        Whether its result can be printed as JSON.
    table : str, optional
        The table of a file of options that is meant for it; by default the one of its name.
    """

    def __init__(
        self,
        *args: Any,
        settings: Mapping[str, str] | None = None,
        groups: Mapping[str, tuple[str, ...]] | None = None,
        examples: Mapping[str, str] | None = None,
        has_json: bool = True,
        table: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{"context_settings": _SETTINGS, **kwargs})
        self.params += [_json_option()] if has_json else []
        self.table = table or str(self.name)
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        own = {option.name: max(option.opts, key=len) for option in options}
        self._options = {**own, **(settings or {})}
        self._flags = {max(option.opts, key=len) for option in options if option.is_flag}
        self._groups, self.examples = groups or {}, examples or {}
        self.params += _console_options()

    def in_options(self, message: str) -> str:
        """A message of the library with this command's options for the settings that it names."""

        def option(found: re.Match[str]) -> str:
            name, value = found.groups()
            if name not in self._options:
                return found[0]
            return self._options[name] + (
                "" if value is None or self._options[name] in self._flags else f" {_typed(value)}"
            )

        return _SETTING.sub(option, message)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        console = ctx.ensure_object(Console)
        console.in_options = self.in_options
        console.start_logging()
        try:
            return super().invoke(ctx)
        except FeatureStoreError as error:
            raise RefusedError(self.in_options(str(error))) from error
        except BrokenPipeError:
            # Under a name of our own, because click would end the program with the code of a failure.
            raise ReaderGoneError from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in their groups."""
        records = {
            option.name: record
            for option in self.get_params(ctx)
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx))
        }
        parts = {title: [records.pop(name) for name in names] for title, names in self._groups.items()}
        parts["Output" if self._groups else "Options"] = list(records.values())
        for title, part in parts.items():
            with formatter.section(title):
                formatter.write_dl(part)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, as they can be pasted."""
        if self.examples:
            with formatter.section("Examples"):
                for wish, line in self.examples.items():
                    formatter.write(f"  # {wish}\n  fs-extract {line}\n")
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """The same for the group, so that the options may stand before the command, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, context_settings=_SETTINGS, **kwargs)
        self.params += _console_options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The commands, in the order in which a user meets them."""
        return list(self.commands)


def _typed(value: str) -> str:
    """A value of Python as one types it after an option."""
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return shlex.quote(",".join(map(str, parsed)) if isinstance(parsed, list | tuple) else str(parsed))
