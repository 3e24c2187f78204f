"""For tests of what uses this library: whether an encoder is one, and models of random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.testing.checkpoints import save_random_checkpoint
    from featurestore.testing.encoders import check_encoder

__all__ = ["check_encoder", "save_random_checkpoint"]

# Imported on first use: both need torch.
__getattr__ = lazy(
    __name__,
    {
        "featurestore.testing.checkpoints": ["save_random_checkpoint"],
        "featurestore.testing.encoders": ["check_encoder"],
    },
)
