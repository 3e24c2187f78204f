"""What the commands share: how loud they are, where messages go, and the progress bar."""

from __future__ import annotations

import ast
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from featurestore.addresses import local_path
from featurestore.errors import FeatureStoreError

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")

_SHOWN = 20  # messages of one kind


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


@dataclass
class Console:
    """How loud a command is.

    Attributes
    ----------
    verbose : int
        1 tells what happens to each track, 2 more.
    quiet : bool
        Errors only.
    no_progress : bool
        No progress bar, even where there is a terminal.
    """

    verbose: int = 0
    quiet: bool = False
    no_progress: bool = False

    @property
    def shows_progress(self) -> bool:
        """Whether a progress bar makes sense."""
        return not self.no_progress and not self.quiet and sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        """Print a line of the result, unless quiet."""
        if not self.quiet:
            click.echo(text)

    @staticmethod
    def error(message: str, kind: str = "error") -> None:
        """Print an error, however quiet the command is."""
        text = "\n".join(map(printable, as_typed(message).split("\n")))
        click.echo(f"fs-extract: {kind}: {text}", err=True)

    def errors(self, messages: Sequence[object], more: str, kind: str = "error") -> None:
        """Print the first errors, and how many `more` there are."""
        for message in messages[:_SHOWN]:
            self.error(str(message), kind)
        if (left := len(messages) - _SHOWN) > 0:
            self.error(f"and {left} {more}; --json lists all", kind)

    def start_logging(self, command: Command) -> None:
        """Send the library's log to stderr, with the names that a command has for settings."""
        handler = _StderrHandler()
        handler.setFormatter(_Formatter(command))
        level = logging.ERROR if self.quiet else logging.WARNING - 10 * min(self.verbose, 2)
        logger = logging.getLogger("featurestore")
        logger.handlers = [handler]
        logger.setLevel(level)
        logging.captureWarnings(True)
        warnings = logging.getLogger("py.warnings")
        warnings.handlers = [handler if self.verbose else logging.NullHandler()]
        warnings.propagate = logger.propagate = False

    def log_to(self, path: Path) -> None:
        """Write the library's log to a file, with times, from INFO on."""
        logger = logging.getLogger("featurestore")
        for handler in logger.handlers:
            handler.setLevel(logger.level)
        try:
            file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise click.ClickException(f"--log-file {path} cannot be written: {error.strerror}") from None
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        click.get_current_context().call_on_close(file.close)
        logger.addHandler(file)
        logger.setLevel(min(logger.level, logging.INFO))


class _Formatter(logging.Formatter):
    """Shows settings as the options of a command; the library's threads do not know which one runs."""

    def __init__(self, command: Command) -> None:
        super().__init__("fs-extract: %(message)s")
        self._command = command

    def format(self, record: logging.LogRecord) -> str:
        """A line of the log."""
        return self._command.in_options(super().format(record))


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = "\n".join(map(printable, self.format(record).splitlines()))
        if "tqdm" in sys.modules:  # a progress bar may be there: write above it
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            click.echo(text, err=True)


def _set(ctx: click.Context, option: click.Parameter, value: int) -> None:
    """Set what an option says of the console; both the group and the command may have said it."""
    console, name = ctx.ensure_object(Console), str(option.name)
    setattr(console, name, max(getattr(console, name), value))


def _console_options() -> list[click.Option]:
    shown: dict[str, Any] = {"expose_value": False, "is_eager": True, "show_default": False, "callback": _set}
    no_bar = "No progress bar; there is none anyway without a terminal."
    return [
        click.Option(["-v", "--verbose"], count=True, help="Tell more; twice: even more.", **shown),
        click.Option(["-q", "--quiet"], is_flag=True, help="Tell errors only.", **shown),
        click.Option(["--no-progress"], is_flag=True, help=no_bar, **shown),
    ]


_SETTINGS = {
    "auto_envvar_prefix": "FEATURESTORE",
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "show_default": True,
}


class ReaderGoneError(Exception):
    """The reader of our output has seen enough."""


class RefusedError(click.ClickException):
    """What the library has raised, in the words of the command line."""


_SETTING = re.compile(r"`([a-z][a-z_.]*)(?:=([^`]+))?`")
"""How a message of the library names a setting: `overlap`, or `dtype='float16'`."""


class Command(click.Command):
    """A command that knows -v, -q and --no-progress, and takes its options from FEATURESTORE_... as well.

    Parameters
    ----------
    settings : mapping of str to str, optional
        Options of settings that the library calls otherwise.
    """

    def __init__(self, *args: Any, settings: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": _SETTINGS, **kwargs})
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        own = {option.name: max(option.opts, key=len) for option in options}
        self._options = {**own, **(settings or {})}
        self._flags = {max(option.opts, key=len) for option in options if option.is_flag}
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
        ctx.ensure_object(Console).start_logging(self)
        try:
            return super().invoke(ctx)
        except FeatureStoreError as error:
            raise RefusedError(self.in_options(str(error))) from error
        except BrokenPipeError:
            # Under a name of our own, because click would end the program with the code of a failure.
            raise ReaderGoneError from None


class Group(click.Group):
    """The same for the group, so that the options may stand before the command, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": _SETTINGS, **kwargs})
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


def as_typed(message: str) -> str:
    """A message of the library with the options of the command that runs."""
    context = click.get_current_context(silent=True)
    command = None if context is None else context.command
    return command.in_options(message) if isinstance(command, Command) else message


def json_option(function: F) -> F:
    """Add --json."""
    return click.option(
        "--json", "as_json", is_flag=True, envvar="FEATURESTORE_JSON", help="Print the result as JSON."
    )(function)


def print_json(value: Any) -> None:
    """Print a result for machines."""
    click.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """Text without anything that a terminal would act on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(rows: dict[str, Any]) -> str:
    """Names and values, in two columns."""
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {printable(str(value))}" for name, value in rows.items())


def duration(seconds: float) -> str:
    """Seconds for people: "0:01:23"."""
    return str(timedelta(seconds=round(seconds)))


def length(hours: float) -> str:
    """Hours of audio for people: "12.3 min", "4.5 h"."""
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


@contextmanager
def progress_bar(
    console: Console, layout: str, listener: Callable[[Any], Callable[P, None]], **settings: Any
) -> Iterator[Callable[P, None] | None]:
    """What `listener` makes of a bar on stderr with tqdm's format `layout`; None where there should be none."""
    if not console.shows_progress:
        yield None
        return
    from tqdm import tqdm

    tqdm.monitor_interval = 0
    with tqdm(total=0, file=sys.stderr, bar_format=layout, dynamic_ncols=True, leave=False, **settings) as bar:
        yield listener(bar)


def counting_bar(console: Console, unit: str) -> AbstractContextManager[Callable[[int, int], None] | None]:
    """A progress bar for so many of so many."""

    def listener(bar: Any) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return show

    layout = f"{{n_fmt}}/{{total_fmt}} {unit} |{{bar:20}}| {{elapsed}}<{{remaining}}"
    return progress_bar(console, layout, listener)
