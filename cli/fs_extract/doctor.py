"""fs-extract doctor."""

from __future__ import annotations

import dataclasses
from itertools import chain, groupby
from pathlib import Path

import click

from fs_extract.command import Command
from fs_extract.console import Console, printable
from fs_extract.parameters import GivenPath

_MARKS = {True: "ok", False: "!!", None: "--"}


@click.command(cls=Command, examples={"what the disk can do that a store will be on": "doctor /data"})
@click.argument("folder", type=GivenPath(), default=".")
@click.pass_obj
def doctor(console: Console, folder: Path) -> int:
    """Look at versions, devices, the model hub, and the file system of FOLDER."""
    from featurestore import doctor as checks

    found = list(chain(checks.versions(), checks.devices(), checks.hub(), checks.folder(folder.absolute())))
    lines: list[str] = []
    for topic, checked in groupby(found, lambda check: check.topic):
        lines.append(printable(topic))
        lines += [f"  {_MARKS[check.ok]} {check.name:<16} {printable(check.detail)}" for check in checked]
    console.result([dataclasses.asdict(check) for check in found], "\n".join(lines))
    return 1 if any(check.ok is False for check in found) else 0
