"""How a training goes: losses of held-out windows, the effective rank of features, and a fixed probe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from featurestore.training.pretrain.batches import Batch
from featurestore.training.pretrain.cqt import CqtTarget
from featurestore.training.pretrain.losses import Counts, losses, term_names
from featurestore.training.pretrain.network import Heads, TrainedEncoder
from featurestore.training.pretrain.processes import Processes
from featurestore.training.pretrain.recipe import Recipe


@torch.no_grad()
def evaluate(
    encoder: TrainedEncoder,
    heads: Heads,
    batches: Sequence[Batch],
    recipe: Recipe,
    processes: Processes,
    cqt: CqtTarget | None,
) -> dict[str, float]:
    """Losses and features of the same windows every time.

    Parameters
    ----------
    encoder : TrainedEncoder
        Is back in training mode afterwards.
    heads : Heads
        The same.
    batches : sequence of Batch
        All of them; each process takes its share.
    recipe : Recipe
        Weighs the losses and names the probe.
    processes : Processes
        Between which the batches are shared.
    cqt : CqtTarget or None
        Computes spectrograms that the batches have not.

    Returns
    -------
    dict of str to float
        ``loss``, its terms; ``effective rank`` of the last state, averaged over each window, without a mask;
        ``probe``, if the recipe wants one.
    """
    model = encoder.encoder
    windows = sum(len(x.wave) for x in batches)
    counts = Counts(windows, sum(x.mask.numel() for x in batches), sum(len(x.masked) for x in batches))
    features = torch.zeros(windows, 2 * model.dim, device=processes.device)
    sums: dict[str, Tensor] = {}
    encoder.eval()
    heads.eval()
    done = 0
    for index, batch in enumerate(batches):
        rows = slice(done, done + len(batch.wave))
        done += len(batch.wave)
        if index % processes.count != processes.rank:
            continue
        moved = batch.to(processes.device)
        wave, _ = model.prepared(moved.wave, None)
        states, penalty = encoder(wave, moved.mask)
        total, terms = losses(states, penalty, moved, heads, recipe, counts, cqt)
        for name, value in {"loss": total, **terms}.items():
            sums[name] = sums.get(name, torch.zeros((), device=processes.device)) + value
        states, _ = encoder(wave, torch.zeros_like(moved.mask))
        features[rows] = torch.cat([states[-1].mean(dim=1), states[-1].std(dim=1, correction=0)], dim=1)
    encoder.train()
    heads.train()
    processes.sum(features)
    names = term_names(recipe)
    values = processes.sum(torch.stack([sums.get(x, torch.zeros((), device=processes.device)) for x in names]))
    found = dict(zip(names, values.tolist(), strict=True))
    found["effective rank"] = effective_rank(features[:, : model.dim])
    if recipe.run.probe:
        found["probe"] = linear_probe(features.cpu(), _targets(batches, recipe.run.probe))
    return found


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the singular values of centred features (Roy and Vetterli 2007).

    Parameters
    ----------
    features : Tensor, shape (windows, dim)
        One row for each window.

    Returns
    -------
    float
        NaN where a feature is no number.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def linear_probe(features: Tensor, targets: Tensor) -> float:
    """How much of the targets a linear model finds in the features.

    Ridge regression on every other window, looked at on those between.

    Parameters
    ----------
    features : Tensor, shape (windows, dim)
        One row for each window.
    targets : Tensor, shape (windows, classes)
        Means over each window.

    Returns
    -------
    float
        Share of the variance that is explained (R squared), all classes together; NaN where a feature is no
        number.
    """
    if not features.isfinite().all():
        return math.nan
    x, y = features.double(), targets.double()
    x = (x - x[::2].mean(dim=0)) / (x[::2].std(dim=0, correction=0) + 1e-6)
    mean = y[::2].mean(dim=0)
    gram = x[::2] @ x[::2].T
    ridge = torch.eye(len(gram), dtype=torch.float64) * x.shape[1]
    weights = torch.linalg.solve(gram + ridge, y[::2] - mean)
    errors = y[1::2] - mean - x[1::2] @ x[::2].T @ weights
    return float(1 - errors.square().sum() / (y[1::2] - mean).square().sum().clamp(min=1e-12))


def _targets(batches: Sequence[Batch], name: str) -> Tensor:
    """Means over each window of auxiliary labels, or shares of each token."""
    if name in batches[0].dense:
        return torch.cat([x.dense[name].mean(dim=1) for x in batches])
    tokens = torch.cat([x.tokens[name] for x in batches])
    return torch.nn.functional.one_hot(tokens).float().mean(dim=1)
