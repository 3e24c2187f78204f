"""From gradients to weights: all gradients in one tensor, clipped, then AdamW at the learning rate of the step."""

from __future__ import annotations

import torch
from torch import Tensor

from featurestore.training.pretrain.settings import OptimizerSettings


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Of the update after `step` others: linear warm-up, then polynomial decay (fairseq's polynomial_decay)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    left = max(0.0, 1 - (step - settings.warmup) / max(1, steps - settings.warmup))
    share: float = left**settings.power
    return settings.end_lr + (settings.lr - settings.end_lr) * share


def flat_gradients(parameters: list[torch.nn.Parameter]) -> Tensor:
    """One tensor that holds the gradients of all parameters, and a place for the loss behind them."""
    flat = torch.zeros(sum(x.numel() for x in parameters) + 1, device=parameters[0].device)
    begin = 0
    for parameter in parameters:
        parameter.grad = flat[begin : begin + parameter.numel()].view_as(parameter)
        begin += parameter.numel()
    return flat


def adamw(parameters: list[torch.nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
