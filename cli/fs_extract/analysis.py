"""fs-extract similar, probe and report: questions to a store."""

from __future__ import annotations

from pathlib import Path

import click

import featurestore
from featurestore.atomic import replacing
from featurestore.choices import METRICS
from fs_extract.command import Command
from fs_extract.completion import complete_tracks
from fs_extract.console import Console, print_json, printable
from fs_extract.parameters import GivenPath, GivenStore, Layers


@click.command(
    cls=Command,
    examples={
        "tracks that are most like one": "similar features.zarr rock/song --layer 7",
        "moments like the one at 12.5 seconds": "similar features.zarr rock/song --at 12.5 --layer 7",
    },
)
@click.argument("store", type=GivenStore())
@click.argument("query", required=False, metavar="[TRACK_ID]", shell_complete=complete_tracks)
@click.option("--audio", type=GivenPath(), help="A file of audio instead of a track.")
@click.option("--at", type=float, metavar="SECONDS", help="A moment of the track: compare segments.")
@click.option("--layer", type=click.IntRange(min=0), help="The layer; needed where the store has several.")
@click.option("-k", type=click.IntRange(min=1), default=10, help="How many.")
@click.option("--level", type=click.Choice(["aggregated", "segments"]), help="What is compared.")
@click.option("--metric", type=click.Choice(METRICS), default=METRICS[0], help="How.")
@click.pass_obj
def similar(
    console: Console,
    store: Path,
    query: str | None,
    *,
    audio: Path | None,
    at: float | None,
    layer: int | None,
    k: int,
    level: str | None,
    metric: str,
) -> int:
    """List the tracks of STORE, or moments of them, that are most like a track or a file of audio."""
    if at is not None and query is None:
        raise click.UsageError("--at is a moment of a track: name the track")
    wanted = (query, at) if query is not None and at is not None else query
    opened = featurestore.FeatureStore(store)
    found = opened.similar(wanted, audio=audio, layer=layer, k=k, level=level, metric=metric)
    if console.as_json:
        print_json([{"track_id": x.track_id, "score": x.score, "start": x.start} for x in found])
        return 0
    for match in found:
        where = "" if match.start is None else f"{match.start:9.2f} s  "
        click.echo(f"{match.score:7.4f}  {where}{printable(match.track_id)}")
    return 0


@click.command(
    cls=Command,
    examples={
        "which layer knows genres, without being told by artists": (
            "probe features.zarr labels.csv --label genre --group artist"
        )
    },
)
@click.argument("store", type=GivenStore())
@click.argument("labels", type=GivenPath())
@click.option("--label", required=True, help="The column to predict.")
@click.option("--group", help="A column such as the artist, whose tracks are never in training and test at once.")
@click.option("--no-groups", is_flag=True, help="Go without; scores are too high where an artist has many tracks.")
@click.option("--on", default="track_id", help="The column with the track ids.")
@click.option("--layers", type=Layers(), help='Layers to probe, like "7" or "0-12".  [default: all]')
@click.option("--baseline", type=GivenStore(), help="Another store with the same tracks, as of logmel.")
@click.option("--picture", type=GivenPath(), help="An SVG file of the bars, to write besides.")
@click.pass_obj
def probe(
    console: Console,
    store: Path,
    labels: Path,
    *,
    label: str,
    group: str | None,
    no_groups: bool,
    on: str,
    layers: tuple[int, ...] | None,
    baseline: Path | None,
    picture: Path | None,
) -> int:
    """Tell which layer of STORE knows a label best, by linear probes.

    LABELS is a CSV file, or mirdata:NAME for a data set that mirdata knows.
    """
    report = featurestore.FeatureStore(store).probe(
        labels,
        label,
        group=group,
        no_groups=no_groups,
        layers=layers,
        baseline=None if baseline is None else featurestore.FeatureStore(baseline),
        on=on,
    )
    if picture is not None:
        with replacing(picture) as (file,):
            file.write(report.to_svg().encode())
    console.result(report.to_dict(), str(report))
    return 0


@click.command(
    cls=Command,
    has_json=False,
    examples={"coloured by genre": "report features.zarr -o report.html --labels labels.csv --label genre"},
)
@click.argument("store", type=GivenStore())
@click.option("-o", "--output", type=GivenPath(), default=Path("report.html"), help="The file.")
@click.option("--labels", type=GivenPath(), help="A CSV file, or mirdata:NAME, to colour the map by.")
@click.option("--label", help="The column of the labels.")
@click.option("--on", default="track_id", help="The column with the track ids.")
@click.option("--layer", type=click.IntRange(min=0), help="The layer of the map.  [default: the middle one]")
@click.option("--track", multiple=True, help="A track to show over time; may be given several times.")
@click.pass_obj
def report(
    console: Console,
    store: Path,
    *,
    output: Path,
    labels: Path | None,
    label: str | None,
    on: str,
    layer: int | None,
    track: tuple[str, ...],
) -> int:
    """Write a page of HTML about STORE: what is in it, what is suspicious, layers, and a map of the tracks."""
    if (labels is None) != (label is None):
        raise click.UsageError("--labels and --label go together: the file, and the column to colour by")
    found = featurestore.FeatureStore(store).report(
        output, labels=labels, label=label or "label", on=on, layer=layer, tracks=track or None
    )
    suspicious = ", ".join(f"{kind.lower()} {count}" for kind, count in found.items() if count)
    console.say(f"{printable(str(output))}: {suspicious or 'nothing suspicious'}")
    return 0
