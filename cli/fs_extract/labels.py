"""fs-extract manifest and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from featurestore.amounts import hours_in_words
from featurestore.choices import ID_FROM
from fs_extract.command import Command
from fs_extract.console import Console, table
from fs_extract.parameters import GivenPath, GivenStore
from fs_extract.progress import counting_bar

_OF_A_FIT = ("clusters", "seed", "fit_batch_size", "fit_fraction", "fit_passes")


@click.command(cls=Command, examples={"a tenth of the files for validation": "manifest music data"})
@click.argument("audio", type=GivenPath())
@click.argument("out", type=GivenPath())
@click.option(
    "--valid",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    help="Share of the files that goes into valid.tsv.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the split.")
@click.option("--file-pattern", help='Only files whose name matches, like "*.flac".')
@click.option(
    "--relative-root", is_flag=True, help="Write the folder relative to OUT, so that both can be moved together."
)
@click.pass_obj
def manifest(console: Console, /, audio: Path, out: Path, **settings: Any) -> int:
    """List the audio of the folder AUDIO in OUT/train.tsv and OUT/valid.tsv, as fairseq reads them."""
    from featurestore.training.labels import write_manifests

    with counting_bar(console, "files") as progress:
        report = write_manifests(audio, out, progress=progress, **settings)
    rates = ", ".join(f"{count} at {rate:,} Hz" for rate, count in report.sample_rates.items())
    rows = {
        "folder": report.out,
        "train.tsv": f"{report.train} files",
        "valid.tsv": f"{report.valid} files",
        "audio": f"{hours_in_words(report.hours)}: {rates}",
    }
    if report.errors:
        rows["left out"] = f"{len(report.errors)} files"
    console.result(report.to_dict(), table(rows))
    console.errors([f"{path}: {message}" for path, message in report.errors], "more failed")
    return 1 if report.errors else 0


@click.command(
    cls=Command,
    settings={"batch_size": "--fit-batch-size", "fraction": "--fit-fraction", "passes": "--fit-passes"},
    examples={"500 clusters of layer 7": "labels features.zarr data --layer 7"},
)
@click.argument("store", type=GivenStore())
@click.argument("out", type=GivenPath())
@click.option("--layer", type=click.IntRange(min=0), help="Whose features are fitted. Not needed with --fit.")
@click.option("--clusters", type=click.IntRange(min=1), default=500, help="How many labels.")
@click.option("--manifest", type=GivenPath(), help="Folder of train.tsv and valid.tsv.  [default: OUT]")
@click.option(
    "--name",
    default="km",
    help="Write train.NAME and so on, for labels of several teachers in one folder.",
)
@click.option("--fit", type=GivenPath(), help="Assign to the clusters of this fit, and fit nothing.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of everything that is drawn.")
@click.option(
    "--fit-batch-size",
    type=click.IntRange(min=1),
    default=10_000,
    help="Frames of a step of k-means.",
)
@click.option(
    "--fit-fraction",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Share of the tracks of train.tsv that is fitted.",
)
@click.option(
    "--fit-passes",
    type=click.IntRange(min=1),
    default=5,
    help="How often they are read.",
)
@click.option("--dataset", help="Prefix of the track ids, as the store was built with.")
@click.option(
    "--id-from",
    type=click.Choice(ID_FROM),
    default="path",
    help="What the track ids are, as the store was built with.",
)
@click.pass_obj
def labels(
    console: Console,
    /,
    store: Path,
    out: Path,
    *,
    fit_batch_size: int,
    fit_fraction: float,
    fit_passes: int,
    **settings: Any,
) -> int:
    """Write labels of the frames of STORE to OUT: clusters of one layer's raw features, by k-means.

    OUT gets train.km, valid.km and dict.km.txt, a line for each file of the manifests, as fairseq reads them, and
    the fit, fit.km.npz, for other stores of the same features.
    """
    from featurestore.training.labels import label_store

    given = [x for x in _OF_A_FIT if _is_given(x)]
    if settings["fit"] is not None and given:
        options = ", ".join(f"--{x.replace('_', '-')}" for x in given)
        raise click.UsageError(f"--fit fits nothing, so that {options} mean nothing: leave them out")
    with counting_bar(console, "tracks read") as progress:
        report = label_store(
            store,
            out,
            batch_size=fit_batch_size,
            fraction=fit_fraction,
            passes=fit_passes,
            progress=progress,
            **settings,
        )
    of_split = [f"{report.labels[x]:,} of {report.files[x]} files in {x}.{report.name}" for x in report.files]
    rows = {
        "folder": report.out,
        "fit": f"{report.fit}: {report.clusters} clusters of layer {report.layer}",
        "labels": ", ".join(of_split),
        "clusters": f"{report.used} are used, as evenly as {report.perplexity:.1f} would be",
    }
    console.result(report.to_dict(), table(rows))
    return 0


def _is_given(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE
