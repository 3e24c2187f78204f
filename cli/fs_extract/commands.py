"""The group of commands, and how every ending becomes an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

import featurestore
from fs_extract.analysis import probe, report, similar
from fs_extract.build import build
from fs_extract.command import Group, ReaderGoneError
from fs_extract.completion import completion
from fs_extract.config import config
from fs_extract.config_file import closest
from fs_extract.console import Console
from fs_extract.doctor import doctor
from fs_extract.importing import import_
from fs_extract.labels import labels, manifest
from fs_extract.plan import plan
from fs_extract.pretrain import pretrain
from fs_extract.runs import failures, runs
from fs_extract.sharing import copy, export, pull, push
from fs_extract.store import info, ls, pack, rm, verify

DONE, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
"""Exit codes; the last one is that of every program whose reader has gone."""


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"fs-extract {featurestore.__version__}")
        ctx.exit()


@click.group(
    cls=Group,
    epilog="Every option can also come from the environment: --batch-size as FEATURESTORE_BATCH_SIZE, and so on. "
    "Exit codes: 0 done, 1 some tracks failed, 2 wrong usage, 3 left undone to others, 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
def fs_extract() -> None:
    """Music collections to MERT features in a Zarr store."""


for _command in (
    build,
    plan,
    info,
    ls,
    verify,
    pack,
    rm,
    runs,
    failures,
    export,
    copy,
    push,
    pull,
    import_,
    similar,
    probe,
    report,
    manifest,
    labels,
    pretrain,
    config,
    doctor,
    completion,
):
    fs_extract.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors="backslashreplace")
    console = Console()
    try:
        code = fs_extract.main(args=arguments, prog_name="fs-extract", standalone_mode=False, obj=console)
        sys.stdout.flush()
    except click.UsageError as error:
        return _wrong_usage(console, error)
    except click.Abort:
        console.error("interrupted")
        return INTERRUPTED
    except click.ClickException as error:
        if console.verbose > 1:
            traceback.print_exc()
        console.error(error.format_message())
        return USAGE
    except (BrokenPipeError, ReaderGoneError):
        _close_stdout()
        return BROKEN_PIPE
    except Exception as error:
        if console.verbose:
            traceback.print_exc()
        if _is_of_output(error):
            console.error(f"stdout cannot be written: {error}")
            _close_stdout()
            return FAILED
        console.error(f"unexpected {type(error).__name__}: {error}")
        if not console.verbose:
            click.echo("Run it again with -v to see where; if it is a mistake of fs-extract, report it.", err=True)
        return FAILED
    return code if isinstance(code, int) else DONE


def _close_stdout() -> None:
    """Drop what is still to be printed: Python's own flush at exit must not complain either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_of_output(error: Exception) -> bool:
    """Whether printing failed, and not the work: click's printing, or the flush above, is where it was raised."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, OSError) and innermost in (click.utils.__file__, __file__)


def _wrong_usage(console: Console, error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
    else:
        console.error(_with_a_guess(error))
        if error.ctx is not None:
            click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
    return USAGE


def _with_a_guess(error: click.UsageError) -> str:
    """The message of an error; of a mistyped option or command, with the one that is closest."""
    if isinstance(error, click.exceptions.NoSuchOption) and error.ctx is not None:
        options = [name for option in error.ctx.command.params for name in option.opts if name.startswith("--")]
        return error.message + closest(error.option_name, options)
    if isinstance(error, click.exceptions.NoSuchCommand):
        return error.message + closest(error.command_name, fs_extract.commands)
    return error.format_message()
