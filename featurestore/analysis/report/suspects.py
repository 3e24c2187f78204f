"""Tracks that somebody should look at: silent, clipped, duplicates, outliers, features that are no numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.analysis.report.statistics import LayerStatistics

if TYPE_CHECKING:
    from featurestore.store import StoreReader

SILENT = 1e-4
"""Root mean square of audio that counts as silent: -80 dB below full scale."""

CLIPPED = 0.01
"""Share of clipped samples that counts."""

OUTLIER = 8.0
"""Robust standard deviations (of the logarithm of a distance from the mean) from which a track is an outlier."""

_ALIKE = 1e-4
"""Relative difference of features up to which two tracks are the same; other devices and batches make 1e-6."""

_AHEAD = 8
_MOST_PAIRS = 5000


@dataclass(frozen=True)
class Suspects:
    """Tracks that are suspicious for one reason.

    `kind` is a heading, `meaning` says from which value on; rows are tracks by their number, worst first, with
    details.
    """

    kind: str
    meaning: str
    rows: list[tuple[int, str]]


def find_suspects(
    store: StoreReader, track_ids: list[str], known: Sequence[Mapping[str, Any]], statistics: LayerStatistics
) -> list[Suspects]:
    """Find them; every kind is there, with no rows if there are none.

    `known` and `statistics` are of the same tracks; rows of likely duplicates are read again.
    """
    levels = [track.get("levels") or {} for track in known]
    quiet = [(n, x["rms"]) for n, x in enumerate(levels) if x.get("rms", 1) < SILENT]
    clipped = [(n, x["clipped"]) for n, x in enumerate(levels) if x.get("clipped", 0) > CLIPPED]
    bad = ~(np.isfinite(statistics.norms) & (statistics.norms > 0))
    return [
        Suspects(
            "No features",
            "Features that are not finite, or all zero.",
            [
                (n, "layers " + ", ".join(str(store.spec.layers[x]) for x in np.flatnonzero(bad[n])))
                for n in np.flatnonzero(bad.any(axis=1)).tolist()
            ],
        ),
        Suspects(
            "Silent",
            f"The root mean square of the audio is below {20 * np.log10(SILENT):.0f} dB of full scale.",
            [(n, f"root mean square {rms:.1e}") for n, rms in sorted(quiet, key=lambda x: x[1])],
        ),
        Suspects(
            "Clipped",
            f"More than {CLIPPED:.0%} of the samples are at full scale.",
            [(n, f"{share:.1%} of the samples") for n, share in sorted(clipped, key=lambda x: -x[1])],
        ),
        Suspects(
            "Duplicates",
            "The same audio file (SHA-256), or the same features to within rounding.",
            _duplicates(store, track_ids, known, statistics.norms),
        ),
        Suspects(
            "Outliers",
            f"Farther from the mean of a layer, or nearer to it, than {OUTLIER:g} robust standard deviations.",
            _outliers(store.spec.layers, statistics.distances, bad),
        ),
    ]


def _outliers(
    layers: Sequence[int], distances: npt.NDArray[Any], bad: npt.NDArray[np.bool_]
) -> list[tuple[int, str]]:
    with np.errstate(all="ignore"):
        logs = np.where(bad | ~np.isfinite(distances) | (distances <= 0), np.nan, np.log(distances))
    if np.isfinite(logs).sum(axis=0).min() < 3:
        return []
    centre = np.nanmedian(logs, axis=0)
    # 1.4826 makes the median deviation of a normal distribution its standard deviation.
    deviation = np.maximum(1.4826 * np.nanmedian(np.abs(logs - centre), axis=0), 1e-6)
    scores = np.nan_to_num((logs - centre) / deviation)
    worst = np.abs(scores).argmax(axis=1)
    score = scores[np.arange(len(scores)), worst]
    found = np.flatnonzero(np.abs(score) > OUTLIER)
    order = found[np.argsort(-np.abs(score[found]), kind="stable")]
    return [(n, f"{score[n]:+.1f} in layer {layers[worst[n]]}") for n in order.tolist()]


def _duplicates(
    store: StoreReader, track_ids: list[str], known: Sequence[Mapping[str, Any]], norms: npt.NDArray[np.float32]
) -> list[tuple[int, str]]:
    found: dict[int, tuple[int, str]] = {}
    first: dict[str, int] = {}
    for number, track in enumerate(known):
        digest = (track.get("audio") or {}).get("sha256")
        if digest and (other := first.setdefault(digest, number)) != number:
            found[number] = other, "same file"
    for one, other in _same_features(store, track_ids, norms):
        low, high = sorted((one, other))
        found.setdefault(high, (low, "same features"))
    return [(number, f"{why} as {track_ids[other]}") for number, (other, why) in sorted(found.items())]


def _same_features(
    store: StoreReader, track_ids: list[str], norms: npt.NDArray[np.float32]
) -> list[tuple[int, int]]:
    """Pairs of tracks: norms that agree in all layers make them likely, their features make them certain."""
    usable = np.flatnonzero(np.isfinite(norms).all(axis=1) & (norms > 0).all(axis=1))
    order = usable[np.argsort(norms[usable, -1], kind="stable")]
    sorted_norms = norms[order]
    pairs = []
    for step in range(1, min(_AHEAD, len(order) - 1) + 1):
        near = np.abs(sorted_norms[step:] - sorted_norms[:-step]) <= _ALIKE * sorted_norms[step:]
        rows = np.flatnonzero(near.all(axis=1))
        pairs.append(np.stack([order[rows], order[rows + step]], axis=1))
    likely = np.concatenate(pairs)[:_MOST_PAIRS] if pairs else np.empty((0, 2), np.int64)
    if not len(likely):
        return []
    rows, inverse = np.unique(likely, return_inverse=True)
    view = store.aggregated(store.spec.layers[-1], tracks=[track_ids[row] for row in rows.tolist()])
    features = view.to_numpy().astype(np.float32)
    one, other = inverse.reshape(likely.shape).T
    differences = np.linalg.norm(features[one] - features[other], axis=1)
    same = differences <= _ALIKE * np.linalg.norm(features[one], axis=1)
    return [(int(a), int(b)) for a, b in likely[same]]
