"""build: the one place where audio, model and store meet."""

from featurestore.pipeline.building import build
from featurestore.pipeline.report import BuildReport, Failure, Progress, TrackWarning

__all__ = ["BuildReport", "Failure", "Progress", "TrackWarning", "build"]
