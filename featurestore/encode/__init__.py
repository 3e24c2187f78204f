"""From windows of samples to features: device, batches, transfer. Nothing here knows a file or a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.encode.batching import EncodedBatch
    from featurestore.encode.device import default_batch_size, resolve_device
    from featurestore.encode.window_encoder import WindowEncoder

__all__ = ["EncodedBatch", "WindowEncoder", "default_batch_size", "resolve_device"]


# Imported on first use: all of it needs torch.
__getattr__ = lazy(
    __name__,
    {
        "featurestore.encode.batching": ["EncodedBatch"],
        "featurestore.encode.device": ["default_batch_size", "resolve_device"],
        "featurestore.encode.window_encoder": ["WindowEncoder"],
    },
)
