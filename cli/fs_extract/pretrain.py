"""fs-extract pretrain."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.amounts import time_in_words
from featurestore.choices import PRECISIONS
from featurestore.errors import SettingError, TrainingError
from fs_extract.command import Command
from fs_extract.console import Console, table
from fs_extract.parameters import GivenPath
from fs_extract.progress import progress_bar

if TYPE_CHECKING:
    from featurestore.training.pretrain import TrainingProgress, TrainingReport

_BAR = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| {elapsed}<{remaining}{postfix}"
_OPTIONS = {
    "data": "data.folder",
    "steps": "run.steps",
    "batch_size": "run.batch",
    "start": "model.start",
    "seed": "run.seed",
    "precision": "run.precision",
}
"""Options that are settings of the recipe."""


@click.command(
    cls=Command,
    settings={key: f"--{name.replace('_', '-')}" for name, key in _OPTIONS.items()},
    examples={
        "the recipe that mini was trained by": "pretrain --config mini --data data --out run",
        "with another learning rate": "pretrain --config mini --data data --out run --set optimizer.lr=1e-4",
    },
)
@click.option("--config", help="95m, 330m or mini, or a TOML file; see docs/guides/pretraining.md.")
@click.option("--data", help="Folder with train.tsv, valid.tsv and the labels.")
@click.option("--out", type=GivenPath(), help="Folder of checkpoints, metrics and the model.")
@click.option("--steps", type=click.IntRange(min=1), help="Updates of the weights, all in all.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:N, or auto.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Windows of one pass of one process.")
@click.option("--start", help="Checkpoint to go on from: a folder or a name on the hub.")
@click.option("--seed", type=click.IntRange(min=0), help="Of everything that is drawn.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Of the network's arithmetic.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    envvar="FEATURESTORE_SET",
    help="Any setting of the recipe: optimizer.lr=1e-4.",
)
@click.pass_obj
def pretrain(
    console: Console,
    /,
    config: str | None,
    out: Path | None,
    device: str,
    *,
    changes: tuple[str, ...],
    **options: Any,
) -> int:
    """Train a model with MERT's recipe.

    The same command goes on where it was stopped. For several processes, start it with torchrun:
    torchrun --nproc-per-node 2 -m fs_extract pretrain --config mini --data DATA --out OUT
    """
    if config is None or out is None:
        raise click.UsageError("say with --config which recipe to train by, and with --out where to")
    overrides: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            _put(overrides, _OPTIONS[name], value)
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes KEY=VALUE, not {change!r}")
        _put(overrides, key.strip(), _value(text))
    from featurestore.training.pretrain import load_recipe
    from featurestore.training.pretrain import pretrain as train

    settings = load_recipe(config, overrides)
    if not settings.data.folder:
        raise click.UsageError("say with --data where the training data are")
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes, which speaks for all
    try:
        with progress_bar(console if first else Console(quiet=True), _BAR, _listener, _line) as progress:
            report = train(settings, out, device=device, progress=progress)
    except TrainingError as error:
        if first:
            console.error(str(error))
        return 1
    if first:
        console.result(_values(report), table(_summary(report)))
        if report.interrupted:
            console.error("interrupted; the same command goes on from here")
    return 130 if report.interrupted else 0


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for depth, name in enumerate(tables, 1):
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            table = ".".join(tables[:depth])
            raise SettingError(f"{table} has the value {values!r} already, so there is no {key}: give one of both")
    values[last] = value


def _value(text: str) -> Any:
    """A value as TOML writes it, or the text itself."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _listener(bar: Any) -> Callable[[TrainingProgress], None]:
    def show(now: TrainingProgress) -> None:
        if bar.desc != now.stage:
            bar.reset()
            bar.initial = now.done
        bar.set_description_str(now.stage, refresh=False)
        bar.total, bar.n = now.total, now.done
        if now.loss is not None:
            bar.set_postfix_str(f", loss {now.loss:.4f}, {now.windows_per_second:.1f} windows/s", refresh=False)
        bar.refresh()

    return show


def _line(now: TrainingProgress) -> str:
    loss = "" if now.loss is None else f", loss {now.loss:.4f}, {now.windows_per_second:.1f} windows/s"
    return f"{now.stage}: {now.done}/{now.total}{loss}"


def _summary(report: TrainingReport) -> dict[str, str]:
    rows = {
        "folder": str(report.out),
        "steps": f"{report.steps} of {report.total}, of which {report.steps - report.resumed_from} by this run",
    }
    if report.loss is not None:
        rows["loss"] = f"{report.loss:.4f}"
    rows |= {f"valid {name}": f"{value:.4f}" for name, value in report.valid.items()}
    if report.model is not None:
        rows["model"] = str(report.model)
    return {**rows, "time": time_in_words(report.elapsed)}


def _values(report: TrainingReport) -> dict[str, Any]:
    from featurestore.training.pretrain.metrics import of_json

    model = None if report.model is None else str(report.model)
    values: dict[str, Any] = of_json({**dataclasses.asdict(report), "out": str(report.out), "model": model})
    return values
