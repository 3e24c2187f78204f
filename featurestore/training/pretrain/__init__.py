"""MERT's recipe of pretraining in plain torch: masked prediction of tokens and of a constant-Q spectrogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.training.pretrain.recipe import PRESETS, Recipe, load_recipe
    from featurestore.training.pretrain.report import TrainingProgress, TrainingReport
    from featurestore.training.pretrain.training import pretrain

__all__ = ["PRESETS", "Recipe", "TrainingProgress", "TrainingReport", "load_recipe", "pretrain"]


# Imported on first use: reading a recipe must not cost the import of torch.
__getattr__ = lazy(
    __name__,
    {
        "featurestore.training.pretrain.recipe": ["PRESETS", "Recipe", "load_recipe"],
        "featurestore.training.pretrain.report": ["TrainingProgress", "TrainingReport"],
        "featurestore.training.pretrain.training": ["pretrain"],
    },
)
