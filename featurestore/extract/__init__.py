"""From audio to features: device, batches, pooling. The one room that brings a model and audio together."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.extract.batching import EncodedBatch
    from featurestore.extract.device import default_batch_size, resolve_device
    from featurestore.extract.extractor import FeatureExtractor

_MODULES = {
    "EncodedBatch": "batching",
    "FeatureExtractor": "extractor",
    "default_batch_size": "device",
    "resolve_device": "device",
}

__all__ = ["EncodedBatch", "FeatureExtractor", "default_batch_size", "resolve_device"]


# Imported on first use: the arithmetic of pooling needs numpy alone.
def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
