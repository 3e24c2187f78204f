"""fs-extract build."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import featurestore
from featurestore.amounts import bytes_in_words, hours_in_words, time_in_words
from featurestore.choices import PRECISION_CHOICES
from featurestore.errors import BuildStoppedError
from featurestore.spec import CODECS, DTYPES, FEATURE_LEVELS
from fs_extract.command import Command
from fs_extract.completion import complete_models
from fs_extract.console import Console, table
from fs_extract.parameters import GivenPath, GivenStore, Layers, SegmentDuration, TrackingUri
from fs_extract.plan import source_options
from fs_extract.progress import BEAT, progress_bar

if TYPE_CHECKING:
    from featurestore.pipeline import BuildReport, Progress

_NAMED = 5  # orphans
_SHOWN_WAIT = 0.05
"""Share of the time from which a user may want to know of it."""

GROUPS = {
    "Features": (
        *("model", "revision", "feature_level", "layers", "segment_duration", "overlap"),
        *("precision", "no_mixed_precision", "dtype", "codec"),
    ),
    "Source": ("file_pattern", "exclude", "shard", "limit", "dataset", "id_from"),
    "Speed and memory": (
        *("device", "processes", "scheduler", "workers", "ahead_mb", "batch_size"),
        "disable_oom_recovery",
    ),
    "What is done": (
        "dry_run",
        "force",
        "upgrade",
        "prune",
        "seal",
        "retry_failed",
        "fail_fast",
        "wait_for_others",
    ),
}

_EXAMPLES = {
    "every track of a folder; the same line goes on where it was stopped": "build music features.zarr",
    "say first how much there is to do": "build music features.zarr --dry-run",
    "one layer, at half the size, on the first card": (
        "build music features.zarr --layers 7 --dtype float16 --device cuda"
    ),
    "only FLAC, and no live recordings": "build music features.zarr --file-pattern '*.flac' --exclude 'live/*'",
    "tracks of a list": "build tracks.csv features.zarr",
}


@click.command(
    cls=Command,
    settings={"mixed_precision": "--no-mixed-precision", "oom_recovery": "--disable-oom-recovery"},
    groups=GROUPS,
    examples=_EXAMPLES,
)
@click.argument("source")
@click.argument("store", type=GivenStore())
@click.option(
    "--model",
    shell_complete=complete_models,
    help="A local folder, mini, logmel, a name of an installed package, or a name on the hub.  "
    "[default: as in the store, or m-a-p/MERT-v1-95M]",
)
@click.option(
    "--revision", help="Commit or tag on the hub.  [default: the one that the store was built with, or the newest]"
)
@click.option(
    "--device",
    default="cpu",
    help="cpu, cuda, cuda:N, mps, several of them (cuda:0,cuda:1), or auto for all cards.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="Processes for each device, which share the tracks, the cores and the memory.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Have the workers of a Dask cluster extract: tcp://host:8786, or local for --processes workers here.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Tracks that are decoded at a time, ahead of the model, for each process.  "
    "[default: 1 on cpu and mps, cores up to 8 on cuda]",
)
@click.option(
    "--ahead-mb",
    type=click.IntRange(min=1),
    help="Megabytes of decoded audio that may wait for the model, in each process.  [default: 64, on cuda 512]",
)
@click.option(
    "--feature-level",
    type=click.Choice(list(FEATURE_LEVELS)),
    help="What is stored: every frame of every window too, windows and tracks, or tracks only.  "
    "[default: as in the store, or segments]",
)
@click.option(
    "--layers",
    type=Layers(),
    help='Hidden states to store, like "7", "4,7" or "0-12".  [default: as in the store, or all]',
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Windows per pass of the model.  [default: 4 on cpu, 8 on mps, 16 to 128 on cuda, by its memory]",
)
@click.option(
    "--segment-duration",
    type=SegmentDuration(),
    default="auto",
    help="Seconds of a window; full for whole tracks, or as much as the model hears; or auto, as the store was "
    "built, or else the model was trained.",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of a window that the next one repeats.  [default: 0.5; 0 for full and an auto of more than 5 s]",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Type of the stored numbers.  [default: as in the store, or float32]",
)
@click.option(
    "--codec",
    type=click.Choice(CODECS),
    help="Compress what is stored; bitround also rounds it to 10 bits of mantissa.  "
    "[default: as in the store, or none]",
)
@click.option("--force", is_flag=True, help="Extract again what is there.")
@click.option(
    "--upgrade", is_flag=True, help="Allow a higher --feature-level, or more --layers, than the store has."
)
@click.option("--prune", is_flag=True, help="Remove tracks whose files were in SOURCE and are gone.")
@click.option(
    "--seal/--no-seal",
    default=None,
    help="Move tracks into a few large files at the end.  [default: when more than 10,000 are in folders]",
)
@click.option("--dry-run", is_flag=True, help="Say what there is to do, and write nothing.")
@click.option("--retry-failed", is_flag=True, help="Only the tracks that have failed (see fs-extract failures).")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many tracks of the source.")
@click.option(
    "--shard",
    help="Only part I of N of SOURCE, by a hash of the ids; auto: I and N of Slurm's job array.",
    metavar="I/N|auto",
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first track that fails.")
@click.option(
    "--wait-for-others",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="How long to wait at the end for tracks that other builds have.",
)
@source_options
@click.option("--log-file", type=GivenPath(), help="Write what -v tells to this file as well, with times.")
@click.option(
    "--precision",
    type=click.Choice(PRECISION_CHOICES),
    help="Arithmetic of the model; bf16 also on processors with its products (see doctor): auto takes it there.  "
    "[default: as in the store, or fp16 on cuda, or fp32]",
)
@click.option("--no-mixed-precision", is_flag=True, help="Calculate in float32 on cuda, too.")
@click.option(
    "--mlflow",
    type=TrackingUri(),
    is_flag=False,
    flag_value="",
    metavar="[URI]",
    help="Log the build to MLflow, like --mlflow=http://host:5000.  [URI: MLFLOW_TRACKING_URI, or mlflow.db here]",
)
@click.option("--disable-oom-recovery", is_flag=True, help="Never go on with smaller batches.")
@click.pass_obj
def build(
    console: Console,
    /,
    source: str,
    store: Path,
    *,
    no_mixed_precision: bool,
    disable_oom_recovery: bool,
    log_file: Path | None,
    mlflow: str | None,
    **settings: Any,
) -> int:
    """Extract the features of SOURCE into STORE.

    SOURCE is a folder, a file, a glob in quotes, or a list of files (.txt, .csv with track_id and path, or .tsv).
    Tracks that the store has are left alone, so the same command goes on where it was stopped.
    What is not given is as it was when the store was made.
    """
    if not console.shows_bar:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if log_file is not None:
        console.log_to(log_file)
    from featurestore.pipeline import MLflowCallback
    from featurestore.pipeline.bar import LAYOUT, draw_on, line_of

    def _line(now: Progress) -> str | None:
        """Nothing before the extraction begins, unless that takes a minute: a build may be refused."""
        return line_of(now) if now.stage == "extracting" or now.elapsed >= BEAT else None

    try:
        with progress_bar(console, LAYOUT, draw_on, _line, desc="starting") as progress:
            report = featurestore.build(
                source,
                store,
                mixed_precision=not no_mixed_precision,
                oom_recovery=not disable_oom_recovery,
                progress=progress,
                callbacks=() if mlflow is None else (MLflowCallback(mlflow or None),),
                **settings,
            )
    except BuildStoppedError as error:
        _show(console, error.report)
        console.error(str(error))
        return 1
    _show(console, report)
    if report.interrupted:
        console.error("interrupted; the same command goes on from here")
    return report.exit_code


def _show(console: Console, report: BuildReport) -> None:
    found = report.to_dict()
    for failure in found["errors"]:
        failure["message"] = console.in_options(failure["message"])
    console.result(found, table(_plan(report) if report.dry_run else _summary(report)))
    console.errors(() if console.quiet else report.warnings, "more warnings", "warning")
    console.errors(report.errors, "more failed")
    undone = [
        f"{track_id}: another process has it; the same command does what is left"
        for track_id in report.skipped_tracks
    ]
    console.errors(undone, "more are left undone", "undone")


def _plan(report: BuildReport) -> dict[str, str]:
    guessed = f", by a guess for {report.guessed} files that do not state their length" if report.guessed else ""
    return {
        "store": str(report.store),
        "model": str(report.model),
        "tracks": f"{report.total_files}, of which {report.cached} are there and {report.to_do} are to do",
        "audio": f"{hours_in_words(report.audio_hours_to_do)} to do{guessed}",
        "size": f"about {bytes_in_words(report.estimated_bytes or 0)}, "
        f"with {bytes_in_words(report.free_bytes or 0)} free",
        "dry run": "nothing was written",
    }


def _summary(report: BuildReport) -> dict[str, str]:
    counts = f"{report.processed} extracted, {report.cached} there before, {report.failed} failed"
    if report.skipped:
        counts += f", {report.skipped} left undone to others"
    if report.not_reached:
        counts += f", {report.not_reached} not reached"
    speed = f", {report.x_real_time:.1f} x real time" if report.x_real_time else ""
    rows = {"store": str(report.store), "tracks": f"{report.total_files}: {counts}"}
    if report.processed:
        rows["audio"] = f"{hours_in_words(report.audio_hours)}{speed}"
        waits = {"audio (more --workers may help)": report.waited_for_audio, "store": report.waited_for_store}
        if waited := ", ".join(f"{share:.0%} for {what}" for what, share in waits.items() if share >= _SHOWN_WAIT):
            rows["model waited"] = waited
    if report.moved:
        rows["moved"] = f"{report.moved} tracks are renamed, as their files were"
    if report.pruned:
        rows["pruned"] = f"{report.pruned} tracks, whose files are gone"
    elif report.orphans:
        more = ", ..." if len(report.orphans) > _NAMED else ""
        named = ", ".join(report.orphans[:_NAMED])
        rows["orphans"] = (
            f"{len(report.orphans)} tracks, whose files are gone; --prune removes them: {named}{more}"
        )
    return {**rows, "time": time_in_words(report.elapsed_time)}
