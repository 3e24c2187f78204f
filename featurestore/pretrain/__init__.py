"""MERT's recipe of pretraining in plain torch: masked prediction of tokens and of a constant-Q spectrogram."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.pretrain.recipe import PRESETS, Recipe, load_recipe
    from featurestore.pretrain.report import TrainingProgress, TrainingReport
    from featurestore.pretrain.training import pretrain

_MODULES = {
    "PRESETS": "recipe",
    "Recipe": "recipe",
    "TrainingProgress": "report",
    "TrainingReport": "report",
    "load_recipe": "recipe",
    "pretrain": "training",
}

__all__ = ["PRESETS", "Recipe", "TrainingProgress", "TrainingReport", "load_recipe", "pretrain"]


# Imported on first use: reading a recipe must not cost the import of torch.
def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
