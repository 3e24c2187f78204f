"""fs-extract doctor."""

from __future__ import annotations

import dataclasses
from itertools import chain
from pathlib import Path

import click

from fs_extract.command import Command, json_option
from fs_extract.console import Console, print_json, printable
from fs_extract.parameters import GivenPath

_MARKS = {True: "ok", False: "!!", None: "--"}


@click.command(cls=Command, examples={"what the disk can do that a store will be on": "doctor /data"})
@click.argument("folder", type=GivenPath(), default=".")
@json_option
@click.pass_obj
def doctor(console: Console, folder: Path, *, as_json: bool) -> int:
    """Look at versions, devices, the model hub, and the file system of FOLDER."""
    from featurestore import doctor as checks

    found = list(chain(checks.versions(), checks.devices(), checks.hub(), checks.folder(folder.absolute())))
    if as_json:
        print_json([dataclasses.asdict(check) for check in found])
    else:
        topic = None
        for check in found:
            if check.topic != topic:
                topic = check.topic
                console.say(printable(topic))
            console.say(f"  {_MARKS[check.ok]} {check.name:<16} {printable(check.detail)}")
    return 1 if any(check.ok is False for check in found) else 0
