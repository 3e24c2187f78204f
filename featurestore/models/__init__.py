"""Encoders: from audio to hidden states. Nothing here knows of files of audio, of windows or of stores."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.models.conformance import check_encoder
    from featurestore.models.encoder import Encoder
    from featurestore.models.load import load_model
    from featurestore.models.mert import MertEncoder
    from featurestore.models.random_checkpoint import save_random_checkpoint

_MODULES = {
    "Encoder": "encoder",
    "MertEncoder": "mert",
    "check_encoder": "conformance",
    "load_model": "load",
    "save_random_checkpoint": "random_checkpoint",
}

__all__ = ["Encoder", "MertEncoder", "check_encoder", "load_model", "save_random_checkpoint"]


# Imported on first use: looking for a model on the hub must not cost the import of torch.
def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
