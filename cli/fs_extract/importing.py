"""fs-extract import: features that another program has extracted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from featurestore.choices import ID_FROM, PRECISIONS
from fs_extract.command import Command
from fs_extract.completion import complete_models
from fs_extract.console import Console
from fs_extract.parameters import GivenPath, GivenStore, Layers, SegmentDuration
from fs_extract.progress import counting_bar


@click.command(
    "import",
    cls=Command,
    examples={
        "a tree that a build goes on with": "import features features.zarr --model m-a-p/MERT-v1-95M --audio music"
    },
)
@click.argument("tree", type=GivenPath())
@click.argument("store", type=GivenStore())
@click.option(
    "--model",
    shell_complete=complete_models,
    required=True,
    help="What the features were computed with, as for build.",
)
@click.option("--audio", type=GivenPath(), help="The music: a later build of it counts these tracks as there.")
@click.option("--segment-duration", type=SegmentDuration(), default="auto", help="Seconds of a window, or full.")
@click.option("--overlap", type=click.FloatRange(0, 1, max_open=True), help="As for build.")
@click.option("--layers", type=Layers(), help="The hidden states in the files.  [default: all]")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    help="Arithmetic that they were computed in.",
)
@click.option("--dataset", help="Prefix of the track ids, as for build; the files do not have it.")
@click.option(
    "--id-from",
    type=click.Choice(ID_FROM),
    default="path",
    help="What of the music the files are named after: the relative path, or the name alone.",
)
@click.pass_obj
def import_(console: Console, /, tree: Path, store: Path, **settings: Any) -> int:
    """Take TREE/raw, TREE/segments and TREE/aggregated, of .npy for each track, into STORE.

    Features are taken over bit for bit. What is there already stays; an interrupted import goes on where it was.
    """
    from featurestore.pipeline.importing import import_tree

    with counting_bar(console, "tracks") as notify:
        report = import_tree(tree, store, notify=notify, **settings)
    text = f"{report.imported} tracks were imported to {store}, {report.there} were there"
    if report.without_audio:
        text += (
            f"\n{len(report.without_audio)} of them have no audio, and a build will extract them again, like "
            f"{report.without_audio[0]!r}: name the music by --audio"
        )
    console.result(asdict(report), text)
    return 0
