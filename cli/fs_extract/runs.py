"""fs-extract runs and failures: what the builds of a store did."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import click

import featurestore
from featurestore.amounts import time_in_words
from fs_extract.command import Command
from fs_extract.console import Console, print_json, printable
from fs_extract.parameters import GivenStore


@click.command(
    cls=Command, examples={"how much each build has done, for another program": "runs features.zarr --json"}
)
@click.argument("store", type=GivenStore())
@click.pass_obj
def runs(console: Console, store: Path) -> int:
    """List the builds of STORE, oldest first."""
    found = featurestore.FeatureStore(store).runs()
    if console.as_json:
        print_json(found)
        return 0
    for run in found:
        how = " (interrupted)" if run.get("interrupted") else " (stopped)" if run.get("stopped") else ""
        counts = f"{run.get('processed')} extracted, {run.get('cached')} there before, {run.get('failed')} failed"
        took = time_in_words(run.get("elapsed_time", 0.0))
        console.say(f"{run['began'][:19]}  {took:>8}  {counts}{how}  {printable(str(run.get('source')))}")
    return 0


@click.command(
    cls=Command,
    examples={
        "a table for a spreadsheet": "failures features.zarr --csv > failures.csv",
        "try those tracks again": "build music features.zarr --retry-failed",
    },
)
@click.argument("store", type=GivenStore())
@click.option("--csv", "as_csv", is_flag=True, envvar="FEATURESTORE_CSV", help="Print a table for spreadsheets.")
@click.pass_obj
def failures(console: Console, store: Path, *, as_csv: bool) -> int:
    """List the tracks of STORE that have failed, and why; build --retry-failed tries them again."""
    found = featurestore.FeatureStore(store).failures()
    if console.as_json:
        print_json(found)
    elif as_csv:
        columns = ["track_id", "path", "error", "message", "source", "time"]
        writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    else:
        for failure in found:
            console.say(f"{printable(failure['track_id'])}: {printable(failure['message'])}")
    return 0
