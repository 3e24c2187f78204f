"""fs-extract pack and rm."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fs_extract.terminal import Command, GivenPath, Voice, json_option, print_json, printable


@click.command(cls=Command)
@click.argument("store", type=GivenPath())
@json_option
@click.pass_obj
def pack(voice: Voice, store: Path, *, as_json: bool) -> int:
    """Bring the table of all tracks up to date."""
    from featurestore import FeatureStore

    opened = FeatureStore(store)
    opened.pack()
    info = opened.info()
    if as_json:
        print_json({"tracks": info["tracks"], "packed": info["packed"]})
    elif info["packed"] < info["tracks"]:
        voice.say(
            f"{info['packed']} of {info['tracks']} tracks are packed: the others are damaged (fs-extract verify) "
            "or have just changed"
        )
    else:
        voice.say(f"{info['packed']} tracks are packed")
    return 0


@click.command(cls=Command)
@click.argument("store", type=GivenPath())
@click.argument("track_ids", nargs=-1, required=True, metavar="TRACK_ID...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def rm(voice: Voice, store: Path, track_ids: tuple[str, ...], *, yes: bool, as_json: bool) -> int:
    """Remove tracks from STORE."""
    from featurestore import FeatureStore, StoreWriter

    opened = FeatureStore(store)
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
    with StoreWriter(store, spec=opened.spec) as writer:
        for track_id in track_ids:
            writer.remove(track_id)
    if as_json:
        print_json({"removed": list(track_ids)})
    else:
        voice.say(f"removed {len(track_ids)}")
    return 0
