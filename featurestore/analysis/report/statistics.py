"""The numbers of a report: one pass over every layer, and what a sample shows of layers and maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from featurestore.store import StoreReader

Floats = npt.NDArray[np.float32]

SAMPLE = 1000
"""Tracks that means, axes and similarities of layers are calculated from, extremes left out."""

NEIGHBOURS = 10
"""Nearest neighbours that a map is asked for."""

_BINS = 24
_BLOCK = 4096
_EXTREME = 5.0
_LEAST = 4
"""Tracks without which the unbiased estimate does not exist."""


@dataclass(frozen=True)
class LayerStatistics:
    """What is known of all tracks in all layers.

    Attributes
    ----------
    norms : ndarray, shape (tracks, layers)
        Euclidean lengths; NaN or infinite where features are.
    distances : ndarray, shape (tracks, layers)
        From the mean of the layer.
    coordinates : ndarray, shape (layers, tracks, 2)
        On the first two principal axes of each layer.
    means : ndarray, shape (layers, feature)
        Of the sample.
    explained : ndarray, shape (layers,)
        Share of the sample's variance that is along the two axes.
    kept : ndarray, shape (layers,)
        Share of the `NEIGHBOURS` nearest neighbours of a track that are among its nearest on the map as well; NaN
        of too few tracks.
    similarity : ndarray, shape (layers, layers)
        Unbiased linear CKA; NaN of too few tracks.
    sampled : int
        Tracks of the sample.
    """

    norms: Floats
    distances: Floats
    coordinates: Floats
    means: Floats
    explained: npt.NDArray[np.float64]
    kept: npt.NDArray[np.float64]
    similarity: npt.NDArray[np.float64]
    sampled: int


def layer_statistics(store: StoreReader, track_ids: list[str]) -> LayerStatistics:
    """Read `aggregated` of some tracks once, a layer at a time, and sum it up."""
    layers, tracks = store.spec.layers, len(track_ids)
    chosen = np.sort(np.random.default_rng(0).permutation(tracks)[:SAMPLE])
    norms = np.empty((tracks, len(layers)), np.float32)
    distances = np.empty_like(norms)
    coordinates = np.empty((len(layers), tracks, 2), np.float32)
    means = np.empty((len(layers), store.spec.dim), np.float32)
    explained, kept = np.empty(len(layers)), np.empty(len(layers))
    grams, common = [], np.ones(len(chosen), bool)
    for number, layer in enumerate(layers):
        view = store.aggregated(layer, tracks=track_ids)
        sample = view[chosen].astype(np.float32)
        usual = usual_rows(sample)
        common &= usual
        mean = sample[usual].mean(axis=0) if usual.any() else np.zeros(store.spec.dim, np.float32)
        sample = np.where(usual[:, None], sample - mean, 0)
        axes, explained[number] = principal_axes(sample[usual])
        kept[number] = neighbours_kept(sample[usual], sample[usual] @ axes.T)
        grams.append(sample @ sample.T)
        means[number] = mean
        for first in range(0, tracks, _BLOCK):
            rows = slice(first, min(tracks, first + _BLOCK))
            block = view[rows].astype(np.float32, copy=False)
            with np.errstate(all="ignore"):
                norms[rows, number] = np.sqrt(np.einsum("rf,rf->r", block, block))
                block = block - mean
                distances[rows, number] = np.sqrt(np.einsum("rf,rf->r", block, block))
                coordinates[number, rows] = block @ axes.T
    similarity = linear_cka([gram[np.ix_(common, common)] for gram in grams])
    return LayerStatistics(norms, distances, coordinates, means, explained, kept, similarity, len(chosen))


def usual_rows(rows: Floats) -> npt.NDArray[np.bool_]:
    """Tell which rows are finite and no extremes, which would move the mean and be an axis of their own.

    Extremes are more than `_EXTREME` times as far from the median of each feature as the median row is.
    """
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    if finite.any():
        distances = np.linalg.norm(rows[finite] - np.median(rows[finite], axis=0), axis=1)
        limit = _EXTREME * np.median(distances)
        finite[finite] = (distances <= limit) | (limit == 0)
    return finite


def principal_axes(centred: Floats) -> tuple[Floats, float]:
    """The first two principal axes [axis, feature] of centred rows, and their share of the variance.

    An axis that the rows do not have is zero. The sign is the one that makes the largest part positive, so that
    two reports on one store look the same.
    """
    axes = np.zeros((2, centred.shape[1]), np.float32)
    if not centred.size or not centred.any():
        return axes, 0.0
    # The smaller of the two products has the same directions.
    wide = centred.shape[0] < centred.shape[1]
    values, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    for axis, number in zip(axes, (-1, -2), strict=True):
        if len(values) >= -number and values[number] > values[-1] * 1e-6:
            vector = vectors[:, number] @ centred if wide else vectors[:, number]
            axis[:] = vector / np.linalg.norm(vector) * np.sign(vector[np.abs(vector).argmax()])
    return axes, float(np.maximum(values[-2:], 0).sum() / np.maximum(values, 0).sum())


def neighbours_kept(centred: Floats, coordinates: Floats) -> float:
    """Share of nearest neighbours (Euclidean, `NEIGHBOURS`) that are among the nearest on a map, too.

    NaN if there are not at least twice as many rows as neighbours.
    """
    if len(centred) < 2 * NEIGHBOURS:
        return float("nan")
    there, here = _nearest(centred), _nearest(coordinates)
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(there, here, strict=True)]) / NEIGHBOURS)


def _nearest(rows: Floats) -> npt.NDArray[np.int64]:
    squares = np.einsum("rf,rf->r", rows, rows)
    distances = squares[None] - 2 * (rows @ rows.T)
    np.fill_diagonal(distances, np.inf)
    return np.asarray(np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])


def linear_cka(grams: list[Any]) -> npt.NDArray[np.float64]:
    """Linear centred kernel alignment of layers, with the unbiased estimate of HSIC: shape (layers, layers).

    `grams` are the products (tracks, tracks) of the tracks of each layer. The usual estimate finds layers alike
    (.98) that are independent noise, wherever features outnumber tracks. This one is at most 1, about 0 of what is
    independent, and NaN of fewer than four tracks, or where all are equal.

    Kornblith et al. 2019 (https://arxiv.org/abs/1905.00414); the estimate is that of Song et al. 2012 (Feature
    selection via dependence maximization, eq. 5), by the centring of Székely and Rizzo 2014.
    """
    count = len(grams[0])
    if count < _LEAST:
        return np.full((len(grams), len(grams)), np.nan)
    flat = np.stack([_u_centred(gram).ravel() for gram in grams])
    products = flat @ flat.T
    scale = np.sqrt(np.diag(products))
    with np.errstate(all="ignore"):
        return np.asarray(products / np.outer(scale, scale), np.float64)


def _u_centred(gram: Any) -> Floats:
    gram = np.array(gram, np.float64)
    np.fill_diagonal(gram, 0)
    count, sums = len(gram), gram.sum(axis=0)
    gram -= (sums[:, None] + sums) / (count - 2)
    gram += sums.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(gram, 0)
    return np.asarray(gram, np.float32)


def self_similarity(segments: npt.NDArray[Any], mean: Floats, most: int) -> Floats:
    """Cosines of the segments of a track with each other, without what all tracks have in common.

    The shape is (rows, rows), `mean` that of the layer over tracks. Segments are in the order of time; neighbours
    are averaged if there are more than `most`. NaN where there is no direction.
    """
    with np.errstate(all="ignore"):
        rows = segments.astype(np.float32) - mean
        rows = np.stack([part.mean(axis=0) for part in np.array_split(rows, min(most, len(rows)))])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows @ rows.T)


def histogram(values: npt.NDArray[Any], unit: str) -> dict[str, Any] | None:
    """Counts of what is finite in bins of equal width, or None if nothing is.

    Bins are of the 1st to the 99th percentile; the first and the last one hold all that is beyond. There is one
    edge more than there are counts; beside them are how many values are finite, their median and extremes.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    first, last = np.percentile(finite, (1, 99))
    last = max(last, first + max(abs(first), 1) * 1e-3)
    counts, edges = np.histogram(np.clip(finite, first, last), bins=min(_BINS, len(finite)), range=(first, last))
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "known": len(finite),
        "middle": float(np.median(finite)),
        "low": float(finite.min()),
        "high": float(finite.max()),
        "unit": unit,
    }


def axis(highest: float) -> float:
    """A round number (1, 2 or 5 times a power of ten) that is not below the highest value, and positive."""
    highest = float(highest)
    if not math.isfinite(highest) or highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return float(next(power * step for step in (1, 2, 5, 10) if power * step >= highest))
