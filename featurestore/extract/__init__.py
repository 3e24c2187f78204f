"""From audio to features: device, batches, pooling. The one room that brings a model and audio together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.extract.batching import EncodedBatch
    from featurestore.extract.device import default_batch_size, resolve_device
    from featurestore.extract.extractor import FeatureExtractor

__all__ = ["EncodedBatch", "FeatureExtractor", "default_batch_size", "resolve_device"]


# Imported on first use: the arithmetic of pooling needs numpy alone.
__getattr__ = lazy(
    __name__,
    {
        "EncodedBatch": "featurestore.extract.batching",
        "FeatureExtractor": "featurestore.extract.extractor",
        "default_batch_size": "featurestore.extract.device",
        "resolve_device": "featurestore.extract.device",
    },
)
