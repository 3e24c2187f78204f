"""fs-extract info, ls, verify, pack and rm."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import featurestore
from featurestore.amounts import bytes_in_words, hours_in_words, time_in_words
from featurestore.errors import CorruptTrackError, TrackNotFoundError
from fs_extract.command import Command
from fs_extract.completion import complete_tracks
from fs_extract.console import Console, print_json, printable, table
from fs_extract.parameters import GivenStore

_links_option = click.option(
    "--follow-links", is_flag=True, help="Read files that are links: of the hub's cache, DVC, git-annex."
)


@click.command(
    cls=Command,
    examples={"how many tracks there are, for another program": "info features.zarr --json | jq .tracks"},
)
@click.argument("store", type=GivenStore())
@_links_option
@click.pass_obj
def info(console: Console, store: Path, *, follow_links: bool) -> int:
    """Say what STORE holds, of which settings, and what its builds did.

    Hours and bytes of more than 10,000 tracks are estimated from so many, spread evenly.
    """
    opened = featurestore.FeatureStore(store, follow_links=follow_links)
    found, amounts, history = opened.info(), opened.contents(), _history(opened)
    if console.as_json:
        print_json({**found, **amounts, **history})
    else:
        spec = found.pop("spec")
        spec["layers"] = _short(spec["layers"])
        settings = {name: _listed(value) for name, value in spec.items() if value is not None}
        click.echo(table({**found, **_in_words(amounts, found["tracks"]), **history, **settings}))
    return 0


def _in_words(amounts: dict[str, Any], tracks: int) -> dict[str, str]:
    """Audio and bytes as people read them."""
    looked_at, hours, sizes = amounts["looked_at"], amounts["hours"], amounts["bytes"]
    by = f", estimated from {looked_at} tracks" if looked_at < tracks else ""
    parts = ", ".join(f"{kind} {bytes_in_words(size)}" for kind, size in sizes.items())
    return {
        "audio": "unknown" if hours is None else f"{hours_in_words(hours)}{by}",
        "bytes": f"{bytes_in_words(sum(sizes.values()))} ({parts}){by}"
        if sizes
        else "unknown"
        if by
        else "0 bytes",
    }


def _history(store: Any) -> dict[str, Any]:
    """When a store was built, what has failed, and the command that goes on."""
    runs = store.runs()
    if not runs:
        return {}
    last, options = runs[-1], runs[-1].get("options", {})
    going_on = ["fs-extract", "build", str(last.get("source")), str(store.path)]
    if options.get("file_pattern"):
        going_on += ["--file-pattern", options["file_pattern"]]
    for pattern in options.get("exclude", ()):
        going_on += ["--exclude", pattern]
    return {
        "first_run": runs[0]["began"][:19],
        "last_run": last["began"][:19],
        "failures": len(store.failures()),
        "go_on_with": shlex.join(going_on),
    }


def _short(layers: list[int]) -> str | list[int]:
    """A run of layers as "0-12" instead of thirteen numbers."""
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return layers


def _listed(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value


@click.command(cls=Command, examples={"ids with lengths and numbers of windows": "ls features.zarr --long"})
@click.argument("store", type=GivenStore())
@click.option("--long", "-l", is_flag=True, help="Show kinds, length and number of windows, too.")
@_links_option
@click.pass_obj
def ls(console: Console, store: Path, *, long: bool, follow_links: bool) -> int:
    """List the track ids of STORE, one per line."""
    opened = featurestore.FeatureStore(store, follow_links=follow_links)
    rows: Iterator[Any] = (found for x in opened if (found := _details(opened, x))) if long else iter(opened)
    if console.as_json:
        print_json(list(rows))
        return 0
    for row in rows:
        click.echo(_columns(row) if long else printable(row))
    return 0


def _columns(found: dict[str, Any]) -> str:
    length = "?" if found["duration"] is None else time_in_words(found["duration"])
    return f"{','.join(found['kinds']):<24}  {length:>8}  {found['segments']:>6}  {printable(found['track_id'])}"


def _details(store: Any, track_id: str) -> dict[str, Any] | None:
    """What `ls` tells of a track, None if it was removed since it was listed."""
    try:
        found = store.provenance(track_id)
    except TrackNotFoundError:
        return None
    except CorruptTrackError:
        found = {"kinds": ["damaged"], "starts": []}
    audio = found.get("audio") or {}
    return {
        "track_id": track_id,
        "kinds": found["kinds"],
        "duration": audio.get("duration"),
        "segments": len(found["starts"]),
        "path": audio.get("path"),
        "warnings": found.get("warnings", []),
    }


@click.command(
    cls=Command,
    examples={
        "check every byte": "verify features.zarr --deep",
        "put damaged tracks aside, so that the next build extracts them": "verify features.zarr --deep --repair",
    },
)
@click.argument("store", type=GivenStore())
@click.option("--deep", is_flag=True, help="Read every byte and check every checksum.")
@click.option("--repair", is_flag=True, help="Put damaged tracks aside, so that the next build replaces them.")
@_links_option
@click.pass_obj
def verify(console: Console, store: Path, *, deep: bool, repair: bool, follow_links: bool) -> int:
    """Check that STORE is whole."""
    moved: list[Path] = []
    try:
        opened = featurestore.FeatureStore(store, follow_links=follow_links)
    except CorruptTrackError as error:
        report = featurestore.VerifyReport.of_damaged_root(error, deep=deep)
    else:
        if repair:
            with featurestore.StoreWriter(store, spec=opened.spec) as writer:
                report, moved = writer.repair(deep=deep)
        else:
            report = opened.verify(deep=deep)
    how = f"{report.bytes_read / 1e9:.2f} GB against their checksums" if deep else "structure only"
    rows = {
        "tracks": report.tracks,
        "arrays": report.arrays,
        "packed": report.packed,
        "checked": f"{how}, in {time_in_words(report.elapsed)}",
    }
    if report.unfinished:
        rows["unfinished"] = f"{report.unfinished} changes: a writer is at work, or the next one finishes them"
    if report.left and not repair:
        rows["left over"] = f"{report.left} folders: writers are at work, or the next one sweeps them"
    rows["problems"] = len(report.problems)
    if moved:
        rows["put aside"] = f"{len(moved)} tracks, in {moved[0].parent}: build again to extract them"
    console.result({**report.to_dict(), "put_aside": [str(path) for path in moved]}, table(rows))
    about = ("" if x.track_id is None else f"track {x.track_id!r}: " for x in report.problems)
    console.errors([f"{track}{x.message}" for track, x in zip(about, report.problems, strict=True)], "more")
    return 0 if report.ok else 1


@click.command(
    cls=Command,
    examples={"few files, for a quota or for reading segments of many tracks": "pack features.zarr --seal"},
)
@click.argument("store", type=GivenStore())
@click.option("--seal/--unseal", default=None, help="Move tracks from folders into bundles of thousands, or back.")
@click.pass_obj
def pack(console: Console, store: Path, *, seal: bool | None) -> int:
    """Bring the table of all tracks up to date; seal them into a few large files."""
    opened = featurestore.FeatureStore(store)
    opened.pack(seal=seal)
    info = opened.info()
    if info["packed"] < info["tracks"]:
        text = (
            f"{info['packed']} of {info['tracks']} tracks are packed: the others are damaged (fs-extract verify) "
            "or have just changed"
        )
    else:
        sealed = f", {info['sealed']} of them sealed" if info["sealed"] or seal is not None else ""
        text = f"{info['packed']} tracks are packed{sealed}"
    console.result({name: info[name] for name in ("tracks", "packed", "sealed")}, text)
    return 0


@click.command(
    cls=Command, examples={"without a question, for scripts": "rm features.zarr jazz/blue rock/song --yes"}
)
@click.argument("store", type=GivenStore())
@click.argument("track_ids", nargs=-1, required=True, metavar="TRACK_ID...", shell_complete=complete_tracks)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(console: Console, store: Path, track_ids: tuple[str, ...], *, yes: bool) -> int:
    """Remove tracks from STORE."""
    opened = featurestore.FeatureStore(store)
    track_ids = tuple(dict.fromkeys(track_ids))
    for track_id in track_ids:
        if track_id not in opened:
            opened.remove(track_id)  # raises, naming ids that are alike
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("rm asks before it removes anything; without a terminal, give --yes")
        what = printable(track_ids[0]) if len(track_ids) == 1 else f"{len(track_ids)} tracks"
        if not click.confirm(f"Remove {what} from {store}?", err=True):
            return 0
    with featurestore.StoreWriter(store, spec=opened.spec) as writer:
        for track_id in track_ids:
            writer.remove(track_id)
    console.result({"removed": list(track_ids)}, f"removed {len(track_ids)}")
    return 0
