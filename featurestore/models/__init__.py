"""Encoders: from audio to hidden states. Nothing here knows of files of audio, of windows or of stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.models.checkpoints.load import load_model
    from featurestore.models.encoder import Encoder
    from featurestore.models.mert import MertEncoder
    from featurestore.models.mert2 import Mert2Encoder
    from featurestore.models.muq import MuqEncoder

__all__ = [
    "Encoder",
    "Mert2Encoder",
    "MertEncoder",
    "MuqEncoder",
    "check_encoder",
    "load_model",
    "save_random_checkpoint",
]


# Imported on first use: looking for a model on the hub must not cost the import of torch.
__getattr__ = lazy(
    __name__,
    {
        "featurestore.models.checkpoints.load": ["load_model"],
        "featurestore.models.encoder": ["Encoder"],
        "featurestore.models.mert": ["MertEncoder"],
        "featurestore.models.mert2": ["Mert2Encoder"],
        "featurestore.models.muq": ["MuqEncoder"],
        "featurestore.testing.checkpoints": ["save_random_checkpoint"],
        "featurestore.testing.encoders": ["check_encoder"],
    },
)
