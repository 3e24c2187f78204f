"""The losses of a batch. Each is a sum over windows or frames, divided by how many the whole step has of them.

So the parts of a step, in passes or processes, add up to what one large batch would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from featurestore.training.pretrain.batches import Batch
from featurestore.training.pretrain.cqt import CqtTarget, shaped
from featurestore.training.pretrain.network import Heads
from featurestore.training.pretrain.recipe import Recipe
from featurestore.training.pretrain.settings import HeadSettings, VarianceSettings


@dataclass(frozen=True)
class Counts:
    """How much a step has, in all its passes and processes.

    Attributes
    ----------
    windows, frames, masked : int
    """

    windows: int
    frames: int
    masked: int

    @property
    def unmasked(self) -> int:
        """Frames that are not masked."""
        return self.frames - self.masked


def losses(
    states: list[Tensor],
    penalty: Tensor,
    batch: Batch,
    heads: Heads,
    recipe: Recipe,
    counts: Counts,
    cqt: CqtTarget | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of a batch, and its terms by name before they are weighted.

    Parameters
    ----------
    states : list of Tensor, shape (windows, frames, dim)
        Hidden states 0 to `layers`.
    penalty : Tensor, scalar
        Mean square of what the convolutions over the samples give.
    batch : Batch
        Holds the targets.
    heads : Heads
        Predict them.
    recipe : Recipe
        Weighs them.
    counts : Counts
        Of the whole step.
    cqt : CqtTarget or None
        Computes the spectrogram where the batch has none.

    Returns
    -------
    total : Tensor, scalar
    terms : dict of str to Tensor, scalar
    """
    share = len(batch.wave) / counts.windows
    weighted: list[tuple[float, str, Tensor]] = []
    if batch.tokens:
        weighted += _token_terms(states[-1], batch, heads, recipe, counts)
    if recipe.feature_penalty:
        weighted.append((recipe.feature_penalty, "features", penalty * share))
    if recipe.cqt.masked or recipe.cqt.everywhere:
        weighted += _cqt_terms(states[recipe.cqt.layer], batch, heads, recipe, counts, cqt)
    for head in recipe.heads:
        state = states[head.layer]
        weighted.append((head.weight, head.name, _head_loss(state, batch, heads, head, counts)))
    if recipe.variance.variance or recipe.variance.covariance:
        hinge, covariance = collapse(states[recipe.variance.layer], recipe.variance)
        weighted.append((recipe.variance.variance, "variance", hinge * share))
        weighted.append((recipe.variance.covariance, "covariance", covariance * share))
    total = torch.stack([weight * loss for weight, _, loss in weighted]).sum()
    return total, {name: loss.detach() for _, name, loss in weighted}


def _token_terms(
    state: Tensor, batch: Batch, heads: Heads, recipe: Recipe, counts: Counts
) -> list[tuple[float, str, Tensor]]:
    """Cross-entropy of each codebook, over all frames that are asked (fairseq's HuBERT criterion)."""
    settings, rows = recipe.tokens, state.flatten(0, 1)
    places = {"masked": (settings.masked, batch.masked), "unmasked": (settings.unmasked, batch.unmasked)}
    asked = counts.masked * (settings.masked > 0) + counts.unmasked * (settings.unmasked > 0)
    terms = []
    for place, (weight, index) in places.items():
        if weight and len(index):
            for name, logits in heads.token_logits(rows[index]).items():
                targets = batch.tokens[name].flatten()[index]
                label = name if place == "masked" else f"{name} {place}"
                terms.append((weight, label, F.cross_entropy(logits, targets, reduction="sum") / max(1, asked)))
    return terms


def _cqt_terms(
    state: Tensor, batch: Batch, heads: Heads, recipe: Recipe, counts: Counts, cqt: CqtTarget | None
) -> list[tuple[float, str, Tensor]]:
    settings = recipe.cqt
    magnitudes = batch.cqt
    if magnitudes is None:
        assert cqt is not None
        magnitudes = cqt(batch.clean, state.shape[1])
    target = shaped(magnitudes, settings).flatten(0, 1)
    rows = state.flatten(0, 1)
    terms = []
    if settings.everywhere:
        errors = (heads.cqt(rows).float() - target).square().mean(dim=1)
        terms.append((settings.everywhere, "cqt everywhere", errors.sum() / counts.frames))
        masked = errors[batch.masked]
    elif settings.masked:
        masked = (heads.cqt(rows[batch.masked]).float() - target[batch.masked]).square().mean(dim=1)
    if settings.masked:
        terms.append((settings.masked, "cqt", masked.sum() / max(1, counts.masked)))
    return terms


def _head_loss(state: Tensor, batch: Batch, heads: Heads, head: HeadSettings, counts: Counts) -> Tensor:
    rows, target, asked = state.flatten(0, 1), batch.dense[head.name].flatten(0, 1), counts.frames
    if head.frames == "masked":
        rows, target, asked = rows[batch.masked], target[batch.masked], max(1, counts.masked)
    logits = heads.dense_logits(head.name, rows)
    if head.kind == "multilabel":
        positive = logits.new_full((logits.shape[1],), head.positive)
        each = F.binary_cross_entropy_with_logits(
            logits, (target > 0).float(), pos_weight=positive, reduction="none"
        ).mean(dim=1)
        return each.sum() / asked
    total = target.sum(dim=1, keepdim=True)
    each = -(target / total.clamp(min=1) * F.log_softmax(logits, dim=1)).sum(dim=1)
    return each.sum() / asked


def collapse(state: Tensor, settings: VarianceSettings) -> tuple[Tensor, Tensor]:
    """Hinge on standard deviations below 1, and squared covariances over dimensions, of short means over frames.

    Bardes et al. 2022, arXiv:2105.04906, equations 1 to 4, of the windows of one pass.
    """
    span = min(settings.frames, state.shape[1])
    pieces = state.shape[1] // span
    means = state[:, : pieces * span].reshape(-1, span, state.shape[2]).mean(dim=1).float()
    centred = means - means.mean(dim=0)
    covariance = centred.T @ centred / max(1, len(means) - 1)
    deviation = torch.sqrt(covariance.diagonal() + 1e-4)
    off = covariance - torch.diag(covariance.diagonal())
    return F.relu(1 - deviation).mean(), off.square().sum() / len(covariance)


def term_names(recipe: Recipe) -> list[str]:
    """Names of the loss and its terms, the same in every process."""
    names = ["loss"]
    for name in recipe.data.labels:
        names += [name] * (recipe.tokens.masked > 0) + [f"{name} unmasked"] * (recipe.tokens.unmasked > 0)
    names += ["features"] * (recipe.feature_penalty > 0)
    names += ["cqt everywhere"] * (recipe.cqt.everywhere > 0) + ["cqt"] * (recipe.cqt.masked > 0)
    names += [head.name for head in recipe.heads]
    if recipe.variance.variance or recipe.variance.covariance:
        names += ["variance", "covariance"]
    return names
