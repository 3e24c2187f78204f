"""fs-extract export, copy, push and pull: features for other tools, other stores and buckets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

import featurestore
from featurestore.choices import EXPORT_SUFFIXES
from featurestore.spec import DTYPES, FEATURE_LEVELS
from fs_extract.command import Command
from fs_extract.console import Console
from fs_extract.parameters import GivenPath, GivenStore, Layers
from fs_extract.progress import counting_bar

if TYPE_CHECKING:
    from featurestore.sharing import TransferReport

_layers_option = click.option("--layers", type=Layers(), help='Layers, like "7", "4,7" or "0-12".  [default: all]')
_tracks_option = click.option(
    "--tracks", type=GivenPath(), help="A file of track ids, one a line.  [default: all]"
)


def _ids(tracks: Path | None) -> list[str] | None:
    if tracks is None:
        return None
    try:
        lines = tracks.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--tracks {tracks} cannot be read: {error}") from None
    return [line for line in lines if line]


@click.command(
    cls=Command,
    examples={
        "one file for MATLAB, R and xarray": "export features.zarr features.h5",
        "a table with one row for each track": "export features.zarr tracks.parquet --level aggregated --layers 7",
    },
)
@click.argument("store", type=GivenStore())
@click.argument("out", type=GivenPath())
@click.option(
    "--to", type=click.Choice(list(EXPORT_SUFFIXES)), help="The format.  [default: what the suffix of OUT says]"
)
@click.option(
    "--level",
    type=click.Choice(list(FEATURE_LEVELS)),
    default="segments",
    help="Up to which level.",
)
@_layers_option
@_tracks_option
@click.pass_obj
def export(
    console: Console,
    store: Path,
    out: Path,
    *,
    to: str | None,
    level: str,
    layers: tuple[int, ...] | None,
    tracks: Path | None,
) -> int:
    """Write features of STORE to OUT for other tools: MATLAB, R, pandas, numpy.

    OUT is whole or as it was before. A file of HDF5 can be read as a store is.
    """
    opened = featurestore.FeatureStore(store)
    ids = _ids(tracks)
    opened.export(out, to, level=level, layers=layers, tracks=ids)
    count = len(opened) if ids is None else len(ids)
    console.result({"path": str(out), "tracks": count}, f"{count} tracks are in {out}")
    return 0


@click.command(
    cls=Command,
    examples={
        "one layer, at half the size": "copy features.zarr small.zarr --layers 7 --dtype float16",
        "two stores in one": "copy monday.zarr tuesday.zarr all.zarr",
    },
)
@click.argument("stores", type=GivenStore(), nargs=-1, required=True, metavar="STORE...")
@click.argument("out", type=GivenPath())
@click.option("--level", type=click.Choice(list(FEATURE_LEVELS)), default="all", help="Highest level.")
@_layers_option
@click.option("--dtype", type=click.Choice(DTYPES), help="float16 takes half the room.  [default: as it is]")
@_tracks_option
@click.pass_obj
def copy(
    console: Console,
    stores: tuple[Path, ...],
    out: Path,
    *,
    level: str,
    layers: tuple[int, ...] | None,
    dtype: str | None,
    tracks: Path | None,
) -> int:
    """Copy tracks of one STORE, or of several, to the store OUT: some layers, half the size, merged.

    What is there already stays; an interrupted copy goes on where it was. Two tracks of one name with different
    features are an error.
    """
    from featurestore.sharing.copying import common_spec, copy_tracks

    opened = [featurestore.FeatureStore(store) for store in stores]
    ids = _ids(tracks)
    chosen = None if ids is None else set(ids)
    wanted = [[x for x in store if chosen is None or x in chosen] for store in opened]
    if chosen is not None and (missing := chosen.difference(*wanted)):
        opened[0].aggregated(tracks=sorted(missing))  # raises, naming ids that are alike
    total, done, copied = sum(map(len, wanted)), 0, 0
    spec = common_spec(opened, layers, dtype)
    with featurestore.StoreWriter(out, spec=spec) as writer, counting_bar(console, "tracks") as show:
        for store, some in zip(opened, wanted, strict=True):
            for _, new in copy_tracks(store, writer, tracks=some, level=level):
                done, copied = done + 1, copied + new
                if show is not None:
                    show(done, total)
        writer.pack()
    found = {"path": str(out), "copied": copied, "there": done - copied}
    console.result(found, f"{copied} tracks were copied to {out}, {done - copied} were there")
    return 0


_shard_option = click.option(
    "--shard", help="Only part I of N, by a hash of the ids; auto: of Slurm's job array.", metavar="I/N|auto"
)
_level_option = click.option(
    "--level", type=click.Choice(list(FEATURE_LEVELS)), default="all", help="Highest level; more can follow later."
)


@click.command(
    cls=Command,
    examples={
        "all of it, or what is not there yet": "push features.zarr s3://bucket/features",
        "tracks only, the rest may follow": "push features.zarr s3://bucket/features --level aggregated",
    },
)
@click.argument("store", type=GivenStore())
@click.argument("url")
@_level_option
@_shard_option
@click.pass_obj
def push(console: Console, store: Path, url: str, *, level: str, shard: str | None) -> int:
    """Copy STORE into a bucket, to be read from URL, like s3://bucket/name.

    What is there already stays; the same command goes on where it was stopped, and several may push at once.
    Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL.
    """
    with counting_bar(console, "tracks") as notify:
        report = featurestore.FeatureStore(store).push(url, level=level, shard=shard, notify=notify)
    return _told(console, report, url)


@click.command(cls=Command, examples={"a store of others, to work on": "pull s3://bucket/features features.zarr"})
@click.argument("url")
@click.argument("store", type=GivenStore())
@_level_option
@_shard_option
@click.pass_obj
def pull(console: Console, url: str, store: Path, *, level: str, shard: str | None) -> int:
    """Copy a store from a bucket, or a web server, at URL to the folder STORE.

    What is there already stays; the same command goes on where it was stopped.
    """
    from featurestore.sharing import pull as pull_store

    with counting_bar(console, "tracks") as notify:
        report = pull_store(url, store, level=level, shard=shard, notify=notify)
    return _told(console, report, store)


def _told(console: Console, report: TransferReport, target: object) -> int:
    """Say what was copied; the exit code."""
    found = {"path": str(target), **asdict(report)}
    console.result(found, f"{report.copied} tracks were copied to {target}, {report.there} were there")
    console.errors([f"track {track_id!r}: {message}" for track_id, message in report.failed], "more failed")
    return 0 if report.ok else 1
