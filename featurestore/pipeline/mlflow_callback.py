"""A build as a run of MLflow."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurestore.errors import MissingDependencyError
from featurestore.pipeline.callbacks import BuildCallback

if TYPE_CHECKING:
    from featurestore.pipeline.report import BuildReport

EXPERIMENT = "feature_extraction"
_NO_PARAMETERS = ("callbacks", "progress", "extractor")
_LONGEST = 500  # characters of a parameter, which every version of MLflow takes


class MLflowCallback(BuildCallback):
    """Logs a build as a run of the experiment ``feature_extraction``: its settings and counts, no artifacts.

    The run that is active in this process, if any, and MLflow's global settings stay as they are.

    Parameters
    ----------
    uri : str, optional
        Where runs are kept, like ``sqlite:///runs.db`` or ``http://host:5000``; by default
        ``MLFLOW_TRACKING_URI``, or else MLflow's own: a database of SQLite in the current folder.

    Raises
    ------
    MissingDependencyError
        If MLflow is not installed.
    """

    def __init__(self, uri: str | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            import mlflow
        except ImportError as error:
            raise MissingDependencyError("MLflow is needed: pip install 'featurestore[mlflow]'") from error
        self._mlflow, self._uri = mlflow, uri
        self._run: str | None = None

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begin the run, with the arguments of the build as its parameters."""
        entities = self._mlflow.entities
        self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        there = self._client.create_experiment(EXPERIMENT) if experiment is None else experiment.experiment_id
        name = os.path.basename(os.fspath(settings["store"]))
        self._run = self._client.create_run(there, run_name=name).info.run_id
        given = {**settings, "model": getattr(settings["model"], "name", settings["model"])}
        parameters = [
            entities.Param(key, str(value)[:_LONGEST])
            for key, value in given.items()
            if value is not None and key not in _NO_PARAMETERS
        ]
        self._client.log_batch(self._run, params=parameters)

    def end(self, report: BuildReport | None) -> None:
        """End the run, with the numbers of the report as its metrics."""
        if self._run is None:
            return
        if report is not None:
            entities, now = self._mlflow.entities, int(time.time() * 1000)
            metrics = [
                entities.Metric(field.name, float(value), now, 0)
                for field in dataclasses.fields(report)
                if isinstance(value := getattr(report, field.name), int | float) and not isinstance(value, bool)
            ]
            facts = {"device_used": report.device, "fingerprint": report.fingerprint}
            parameters = [entities.Param(key, value) for key, value in facts.items() if value]
            self._client.log_batch(self._run, metrics=metrics, params=parameters)
        self._client.set_terminated(self._run, _status(report))


def _status(report: BuildReport | None) -> str:
    if report is not None and report.interrupted:
        return "KILLED"
    if report is None or (report.not_reached and not report.dry_run):
        return "FAILED"
    return "FINISHED"
