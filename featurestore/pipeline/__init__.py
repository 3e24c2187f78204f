"""build: the one place where audio, model and store meet."""

from featurestore.pipeline.building import build
from featurestore.pipeline.callbacks import BuildCallback
from featurestore.pipeline.mlflow_callback import MLflowCallback
from featurestore.pipeline.report import BuildReport, Failure, Progress, TrackDone, TrackWarning

__all__ = [
    "BuildCallback",
    "BuildReport",
    "Failure",
    "MLflowCallback",
    "Progress",
    "TrackDone",
    "TrackWarning",
    "build",
]
