"""How loud the commands are, where messages go, and values as people read them."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

_TIMES = "%Y-%m-%d %H:%M:%S"
_SHOWN = 20  # messages of one kind


@dataclass
class Console:
    """How loud a command is, and for whom it prints."""

    verbose: int = 0  # 1 tells what happens to each track, 2 more
    quiet: bool = False  # errors only
    no_progress: bool = False
    as_json: bool = False
    config_file: Path | None = None  # options that are not given, if one was named
    in_options: Callable[[str], str] = str  # makes a message of the library name settings as the command does

    @property
    def shows_bar(self) -> bool:
        """Whether a progress bar makes sense."""
        return not self.no_progress and not self.quiet and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Print a line of the result, unless quiet."""
        if not self.quiet:
            click.echo(text)

    def result(self, value: Any, text: str) -> None:
        """Print what a command has to tell: a value for machines, or a text, unless quiet."""
        if self.as_json:
            print_json(value)
        else:
            self.say(text)

    def error(self, message: str, kind: str = "error") -> None:
        """Print an error, however quiet the command is."""
        text = "\n".join(map(printable, self.in_options(message).split("\n")))
        click.echo(f"fs-extract: {kind}: {text}", err=True)

    def errors(self, messages: Sequence[object], more: str, kind: str = "error") -> None:
        """Print the first errors, and how many `more` there are."""
        for message in messages[:_SHOWN]:
            self.error(str(message), kind)
        if (left := len(messages) - _SHOWN) > 0:
            self.error(f"and {left} {more}; --json lists all", kind)

    def tell(self, text: str) -> None:
        """Print a line about what goes on to stderr, with the time: whoever reads it may do so days later."""
        click.echo(f"{time.strftime(_TIMES)} fs-extract: {printable(text)}", err=True)

    def start_logging(self) -> None:
        """Send the library's log to stderr, with the time where that is no terminal."""
        handler = _StderrHandler()
        times = "" if sys.stderr.isatty() else "%(asctime)s "
        handler.setFormatter(_Formatter(self.in_options, f"{times}fs-extract: %(message)s"))
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
        file.setFormatter(_Formatter(self.in_options, "%(asctime)s %(levelname)s %(message)s"))
        click.get_current_context().call_on_close(file.close)
        logger.addHandler(file)
        logger.setLevel(min(logger.level, logging.INFO))


class _Formatter(logging.Formatter):
    """Shows settings as the options of a command."""

    def __init__(self, in_options: Callable[[str], str], layout: str) -> None:
        super().__init__(layout, _TIMES)
        self._in_options = in_options

    def format(self, record: logging.LogRecord) -> str:
        """A line of the log."""
        return self._in_options(super().format(record))


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        text = "\n".join(map(printable, self.format(record).splitlines()))
        if "tqdm" in sys.modules:  # a progress bar may be there: write above it
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)
        else:
            click.echo(text, err=True)


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
