"""Music collections to MERT features in a Zarr store that is safe to write and fast to read.

The public names are imported on first use, so that ``import featurestore`` costs nothing and analysis code
never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.audio import load_audio, segment_audio, validate_audio_file
    from featurestore.extract import FeatureExtractor
    from featurestore.models import load_model
    from featurestore.pipeline import BuildReport, build
    from featurestore.spec import FeatureSpec
    from featurestore.store import FeatureStore, StoreWriter, VerifyReport

__version__ = "0.1.0"

_ROOMS = {
    "BuildReport": "pipeline",
    "FeatureExtractor": "extract",
    "FeatureSpec": "spec",
    "FeatureStore": "store",
    "StoreWriter": "store",
    "VerifyReport": "store",
    "build": "pipeline",
    "load_audio": "audio",
    "load_model": "models",
    "segment_audio": "audio",
    "validate_audio_file": "audio",
}

__all__ = [
    "BuildReport",
    "FeatureExtractor",
    "FeatureSpec",
    "FeatureStore",
    "StoreWriter",
    "VerifyReport",
    "__version__",
    "build",
    "load_audio",
    "load_model",
    "segment_audio",
    "validate_audio_file",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value = getattr(importlib.import_module(f"featurestore.{_ROOMS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
