"""build: the one place where audio, model and store meet."""

from featurestore.pipeline.building import build
from featurestore.pipeline.callbacks import BuildCallback
from featurestore.pipeline.mlflow_callback import MLflowCallback
from featurestore.pipeline.report import BuildReport, Failure, Progress, TrackDone, TrackWarning
from featurestore.pipeline.source_list import SourceList, write_source_list

__all__ = [
    "BuildCallback",
    "BuildReport",
    "Failure",
    "MLflowCallback",
    "Progress",
    "SourceList",
    "TrackDone",
    "TrackWarning",
    "build",
    "write_source_list",
]
