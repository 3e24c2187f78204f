"""What a training tells: TrainingProgress on the way, TrainingReport at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Tells where a training stands.

    Attributes
    ----------
    stage : str
        "targets" (files of which the spectrogram is computed), "training".
    done, total : int
        Files or steps.
    loss : float or None
    windows_per_second : float or None

    Examples
    --------
    >>> from featurestore.training.pretrain import TrainingProgress
    >>> TrainingProgress(stage="training", done=300, total=1_000, loss=2.5).done
    300
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    windows_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Tells what a training did.

    Attributes
    ----------
    out : Path
    model : Path or None
        The trained model, for `load_model`; None before the last step.
    steps, total : int
        Done, by this and earlier runs, and wanted.
    resumed_from : int
        Step that this run began at.
    loss : float or None
        Mean loss of the last steps.
    valid : dict
        Metrics of the last evaluation.
    interrupted : bool
        Ctrl-C or SIGTERM ended the run; the same call goes on.
    elapsed : float
        Seconds.

    Examples
    --------
    >>> from featurestore.training.pretrain import load_recipe, pretrain
    >>> run = {"steps": 2, "batch": 2, "valid_windows": 2, "probe": ""}
    >>> changes = {"data": {"folder": "data", "labels": ["km"]}, "heads": [], "run": run}
    >>> report = pretrain(load_recipe("mini", changes), "run")
    >>> report.steps, report.total, report.resumed_from
    (2, 2, 0)
    """

    out: Path
    model: Path | None
    steps: int
    total: int
    resumed_from: int
    loss: float | None
    valid: dict[str, float]
    interrupted: bool
    elapsed: float
