"""From gradients to weights: all gradients in one tensor, clipped, then AdamW at the learning rate of the step."""

from __future__ import annotations

import math

import torch

from featurestore.training.pretrain.recipe import Recipe
from featurestore.training.pretrain.settings import OptimizerSettings

_LEAST_SCALE = 1e-4
"""Of the loss in float16 (fairseq's min_loss_scale): some 30 updates in a row were skipped before."""


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Of the update after `step` others: linear warm-up, then polynomial decay (fairseq's polynomial_decay)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    left = max(0.0, 1 - (step - settings.warmup) / max(1, steps - settings.warmup))
    share: float = left**settings.power
    return settings.end_lr + (settings.lr - settings.end_lr) * share


class Updates:
    """AdamW on gradients that lie in one tensor, so that processes can sum them at once.

    Parameters
    ----------
    parameters : list of Parameter
        All that learn, on their device.
    recipe : Recipe

    Attributes
    ----------
    gradients : Tensor, shape (numbers + 1,)
        Of all parameters, and behind them a place for the loss.
    optimizer : Optimizer
    scaler : GradScaler
        At work in float16 only.
    norm : Tensor
        Of the last gradient, before it was clipped.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], recipe: Recipe) -> None:
        self._settings, self._steps = recipe.optimizer, recipe.run.steps
        device = parameters[0].device
        self.gradients = torch.zeros(sum(x.numel() for x in parameters) + 1, device=device)
        pieces = torch.split(self.gradients[:-1], [x.numel() for x in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=self._settings.lr,
            betas=self._settings.betas,
            eps=self._settings.eps,
            weight_decay=self._settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.run.precision == "fp16")
        self.norm = torch.zeros(())

    def apply(self, step: int) -> bool:
        """Clip the gradient and update the weights after `step` updates; whether the gradient is finite."""
        scaled = self.scaler.is_enabled()
        self.scaler.unscale_(self.optimizer)
        self.norm = torch.linalg.vector_norm(self.gradients[:-1])
        if not scaled and not math.isfinite(float(self.norm)):
            return False
        if self._settings.clip:
            self.gradients[:-1] *= torch.clamp(self._settings.clip / (self.norm + 1e-6), max=1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self._steps, self._settings)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # The scaler halves its scale and skips the update wherever a gradient is no number.
        return not scaled or self.scaler.get_scale() >= _LEAST_SCALE
