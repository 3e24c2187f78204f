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
        "Encoder": "featurestore.models.encoder",
        "Mert2Encoder": "featurestore.models.mert2",
        "MertEncoder": "featurestore.models.mert",
        "MuqEncoder": "featurestore.models.muq",
        "check_encoder": "featurestore.testing.encoders",
        "load_model": "featurestore.models.checkpoints.load",
        "save_random_checkpoint": "featurestore.testing.checkpoints",
    },
)
