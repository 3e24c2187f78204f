"""fs-extract plan, and the options that say which files a source names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from featurestore.amounts import hours_in_words
from featurestore.choices import ID_FROM
from fs_extract.command import Command
from fs_extract.console import Console, table
from fs_extract.parameters import GivenPath
from fs_extract.progress import counting_bar


def source_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add the options that say which files a source names, and by which ids."""
    options = (
        click.option("--dataset", help="Prefix of the track ids."),
        click.option(
            "--id-from",
            type=click.Choice(ID_FROM),
            help="What becomes the track id: the relative path without suffix, or the name of the file alone.  "
            "[default: path; for build, as in its last run of this SOURCE]",
        ),
        click.option("--file-pattern", help='Only files whose name matches, like "*.flac".'),
        click.option(
            "--exclude",
            multiple=True,
            help='No files whose name or path matches, like "live/*"; may be given several times.',
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(cls=Command, examples={"one list for all tasks of a job array": "plan music tracks.csv"})
@click.argument("source")
@click.argument("out", type=GivenPath())
@source_options
@click.pass_obj
def plan(console: Console, /, source: str, out: Path, **settings: Any) -> int:
    """List the tracks of SOURCE in OUT, a .csv that build takes as its SOURCE.

    One walk and one look at each header serve all builds of the list, such as the tasks of a job array.
    """
    from featurestore.pipeline import write_source_list

    settings["id_from"] = settings["id_from"] or "path"
    with counting_bar(console, "files") as progress:
        written = write_source_list(source, out, progress=progress, **settings)
    rows = {"list": written.path, "tracks": str(written.tracks), "audio": hours_in_words(written.audio_hours)}
    if written.guessed:
        rows["guessed"] = f"{written.guessed} files do not state their length"
    console.result(dataclasses.asdict(written), table(rows))
    console.errors(written.errors, "more cannot be used")
    return 1 if written.errors else 0
