"""Which layer knows what: a linear probe of each, by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.analysis.probe_picture import draw
from featurestore.errors import MissingDependencyError, SettingError

STRENGTHS = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Regularisation of ridge, for features of unit variance: the best is chosen inside of each fold."""
FOLDS, _REPEATS = 5, 2
"""Parts that the tracks are dealt out into, and how often they are."""

_DISTINCT = 20
"""More distinct numbers than this are values to predict (R2), not classes."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProbeReport:
    """How well a linear model predicts a label from each layer.

    Attributes
    ----------
    label : str
        The label.
    metric : str
        ``balanced accuracy``, of classes; ``R2``, of numbers.
    scores : dict of str to ndarray
        Of each layer (or baseline), by its name: one score for each held-out fold.
    best : str
        The layer of the highest mean.
    ties : list of str
        Layers that cannot be told from the best (corrected resampled t-test, 95 %), the best included.
    chance : float
        Score of a guess.
    shuffled : float
        Mean score of the best layer where the labels are shuffled: far from chance, something leaks.
    tracks, classes, groups : int
        How many there were; no classes of numbers, and no groups if there are none.

    Examples
    --------
    >>> from featurestore.analysis.probe import probe_layers
    >>> x = np.random.default_rng(0).normal(size=(40, 4))
    >>> report = probe_layers({"7": lambda: x}, (x[:, 0] > 0).astype(str), label="loud", groups=None)
    >>> report.best, report.classes, report.chance
    ('7', 2, 0.5)
    """

    label: str
    metric: str
    scores: Mapping[str, Numbers]
    best: str
    ties: Sequence[str]
    chance: float
    shuffled: float
    tracks: int
    classes: int
    groups: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values.

        Examples
        --------
        >>> from featurestore.analysis.probe import probe_layers
        >>> x = np.random.default_rng(0).normal(size=(40, 4))
        >>> report = probe_layers({"7": lambda: x}, (x[:, 0] > 0).astype(str), label="loud", groups=None)
        >>> report.to_dict()["layers"][0]["layer"]
        '7'
        """
        fields = {name: value for name, value in vars(self).items() if name != "scores"}
        return {**fields, "layers": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: layer, mean, standard deviation over folds, and whether it ties with the best.

        Examples
        --------
        >>> from featurestore.analysis.probe import probe_layers
        >>> x = np.random.default_rng(0).normal(size=(40, 4))
        >>> report = probe_layers({"7": lambda: x}, (x[:, 0] > 0).astype(str), label="loud", groups=None)
        >>> report.rows()[0]["ties_with_best"]
        True
        """
        return [
            {
                "layer": name,
                "mean": float(x.mean()),
                "std": float(x.std(ddof=1)),
                "ties_with_best": name in self.ties,
            }
            for name, x in self.scores.items()
        ]

    def to_svg(self) -> str:
        """Return a picture: a bar for each layer, its spread, chance and shuffled labels.

        Examples
        --------
        >>> from featurestore.analysis.probe import probe_layers
        >>> x = np.random.default_rng(0).normal(size=(40, 4))
        >>> report = probe_layers({"7": lambda: x}, (x[:, 0] > 0).astype(str), label="loud", groups=None)
        >>> report.to_svg()[:4]
        '<svg'
        """
        lines = {"chance": self.chance, "shuffled": self.shuffled}
        return draw(self._title(), self.metric, self.rows(), lines)

    def _title(self) -> str:
        classes = f", {self.classes} classes" if self.classes else ""
        groups = f"{self.groups} groups" if self.groups else "no groups"
        return f"{self.label}: {self.metric}, {self.tracks} tracks{classes}, {groups}"

    def __str__(self) -> str:
        width = max(5, *map(len, self.scores))
        lines = [self._title()]
        top = max(0.0, *(float(x.mean()) for x in self.scores.values()))
        for row in self.rows():
            bar = "#" * round(30 * max(0.0, row["mean"]) / top) if top else ""
            mark = "*" if row["ties_with_best"] else " "
            lines.append(f"{row['layer']:>{width}} {mark} {row['mean']:6.3f} ± {row['std']:.3f}  {bar}")
        lines.append(
            f"chance {self.chance:.3f}, shuffled labels {self.shuffled:.3f}; * as good as the best ({self.best})"
        )
        return "\n".join(lines)


def probe_layers(
    features: Mapping[str, Callable[[], npt.NDArray[Any]]],
    values: npt.NDArray[Any],
    *,
    label: str,
    groups: npt.NDArray[Any] | None,
) -> ProbeReport:
    """Cross-validate a ridge on each layer.

    `features` read those [track, feature] of a layer, by its name; `values` are the label of each track: classes,
    or more than 20 distinct numbers. Tracks of one group are never in the training and in the test at once.

    Raises
    ------
    SettingError
        If there are too few tracks of a class, or groups.
    MissingDependencyError
        If scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
        import threadpoolctl
    except ImportError as error:
        raise MissingDependencyError("scikit-learn is needed: pip install 'featurestore[labels]'") from error
    classes = _classes(values)
    target = np.unique(values, return_inverse=True)[1] if classes else np.asarray(values, np.float64)
    splits = _splits(target, groups, bool(classes), label)
    with threadpoolctl.threadpool_limits(1):  # more threads take longer for matrices of this size
        scores = {name: _scores(read(), target, splits, groups, bool(classes)) for name, read in features.items()}
        best = max(scores, key=lambda name: float(scores[name].mean()))
        mixed = np.random.default_rng(0).permutation(target)
        shuffled = float(_scores(features[best](), mixed, splits, groups, bool(classes)).mean())
    share = len(splits[0][1]) / len(splits[0][0])
    return ProbeReport(
        label=label,
        metric="balanced accuracy" if classes else "R2",
        scores=scores,
        best=best,
        ties=[name for name, x in scores.items() if name == best or not _differs(scores[best] - x, share)],
        chance=1 / classes if classes else 0.0,
        shuffled=shuffled,
        tracks=len(values),
        classes=classes,
        groups=0 if groups is None else len(np.unique(groups)),
    )


def _classes(values: npt.NDArray[Any]) -> int:
    """How many classes there are; none if these are numbers to predict."""
    distinct = len(np.unique(values))
    return 0 if values.dtype.kind in "fiu" and distinct > _DISTINCT else distinct


Split = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _splits(target: npt.NDArray[Any], groups: npt.NDArray[Any] | None, classify: bool, label: str) -> list[Split]:
    if classify:
        least = _least(target, groups)
        if int(target.max()) < 1 or least < 2:
            what = "groups" if groups is not None else "tracks"
            raise SettingError(
                f"{label!r} needs at least two classes, and two {what} in each, for training and for the "
                "test: leave out rare classes, or take another group"
            )
        folds = min(FOLDS, least)
    else:
        folds = min(FOLDS, len(target) if groups is None else len(np.unique(groups)))
        if folds < 2:
            raise SettingError(f"{label!r} needs at least two groups: take another one")
    return [split for seed in range(_REPEATS) for split in _deal(target, groups, classify, folds, seed)]


def _deal(
    target: npt.NDArray[Any], groups: npt.NDArray[Any] | None, classify: bool, folds: int, seed: int
) -> Iterator[Split]:
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    rows = np.zeros(len(target))
    if groups is None:
        kind = StratifiedKFold if classify else KFold
        yield from kind(folds, shuffle=True, random_state=seed).split(rows, target)
    elif classify:
        yield from StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(rows, target, groups)
    else:  # which cannot be shuffled in every version: other names of the groups are another deal
        names = np.random.default_rng(seed).permutation(len(np.unique(groups)))[_numbered(groups)]
        yield from GroupKFold(folds).split(rows, target, names)


def _least(target: npt.NDArray[Any], groups: npt.NDArray[Any] | None) -> int:
    """How many tracks, or groups, the rarest class has."""
    counted = target if groups is None else np.unique(np.stack([target, _numbered(groups)]), axis=1)[0]
    return int(np.unique(counted, return_counts=True)[1].min())


def _numbered(groups: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _scores(
    x: npt.NDArray[Any],
    target: npt.NDArray[Any],
    splits: Sequence[Split],
    groups: npt.NDArray[Any] | None,
    classify: bool,
) -> Numbers:
    if not np.isfinite(x).all():
        raise SettingError("some features are not finite numbers: `fs-extract verify` says of which tracks")
    found = []
    for train, test in splits:
        inner = next(_inner(target[train], None if groups is None else groups[train], classify), None)
        strength = STRENGTHS[2]
        if inner is not None:
            fit, choose = train[inner[0]], train[inner[1]]
            strength = max(STRENGTHS, key=lambda s: _score(x, target, fit, choose, s, classify))
        found.append(_score(x, target, train, test, strength, classify))
    return np.array(found)


def _inner(target: npt.NDArray[Any], groups: npt.NDArray[Any] | None, classify: bool) -> Iterator[Split]:
    """A split of the training rows, by the same rule; none where they are too few."""
    try:
        yield from _deal(target, groups, classify, min(4, _least(target, groups)) if classify else 4, 0)
    except ValueError:
        return


def _score(
    x: npt.NDArray[Any],
    target: npt.NDArray[Any],
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    strength: float,
    classify: bool,
) -> float:
    from sklearn.linear_model import Ridge, RidgeClassifier

    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0)
    deviation[deviation == 0] = 1
    fit, held = (x[train] - mean) / deviation, (x[test] - mean) / deviation
    if not classify:
        model = Ridge(alpha=strength, solver="cholesky").fit(fit, target[train])
        left = ((target[test] - model.predict(held)) ** 2).sum()
        return float(1 - left / max(((target[test] - target[train].mean()) ** 2).sum(), 1e-300))
    model = RidgeClassifier(alpha=strength, solver="cholesky", class_weight="balanced").fit(fit, target[train])
    right = model.predict(held) == target[test]
    return float(np.mean([right[target[test] == known].mean() for known in np.unique(target[test])]))


def _differs(differences: Numbers, share: float) -> bool:
    """Whether a mean difference is none by chance: the resampled t-test of Nadeau and Bengio, two-sided 95 %."""
    from scipy.stats import t

    count = len(differences)
    variance = float(differences.var(ddof=1))
    if variance == 0:
        return bool(differences.mean() != 0)
    statistic = float(differences.mean()) / math.sqrt((1 / count + share) * variance)
    return abs(statistic) > float(t.ppf(0.975, count - 1))
