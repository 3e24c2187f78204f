"""k-means of more frames than fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import MissingDependencyError, SettingError

Frames = npt.NDArray[np.float32]

_BATCHES_MIXED = 8
"""Batches that are shuffled together: neighbouring frames are alike, and a batch must not be of one track."""


def fit_kmeans(
    read: Callable[[int], Iterable[Frames]],
    *,
    clusters: int,
    seed: int = 0,
    batch_size: int = 10_000,
    passes: int = 5,
) -> tuple[Frames, int]:
    """Find the centres of clusters of frames that are read several times (scikit-learn's MiniBatchKMeans).

    Memory is bounded by some twenty batches. The same frames in the same order, settings and versions give the
    same centres.

    Parameters
    ----------
    read : callable of int to iterable of ndarray of float32, shape (frames, feature)
        All frames, in blocks of any size, in an order that may depend on the number of the pass.
    clusters : int
        How many.
    seed : int
        Of the first centres and of the order in batches.
    batch_size : int
        Frames of a step, at least as many as clusters.
    passes : int
        How often all frames are read.

    Returns
    -------
    centers : ndarray of float32, shape (clusters, feature)
        k-means++ of the first batch, and then moved towards the mean of what is nearest to each.
    frames : int
        How many there are.

    Raises
    ------
    SettingError
        If a setting is impossible, or there are fewer frames than clusters.
    MissingDependencyError
        If scikit-learn is not installed.

    Examples
    --------
    >>> from featurestore.training.labels import fit_kmeans
    >>> frames = np.random.default_rng(0).normal(size=(1_000, 4)).astype(np.float32)
    >>> centers, count = fit_kmeans(lambda number: [frames], clusters=8, batch_size=500)
    >>> centers.shape, count
    ((8, 4), 1000)
    """
    check_settings(clusters=clusters, seed=seed, batch_size=batch_size, passes=passes)
    # As HuBERT's authors fitted: no centre is moved to another place because few frames are nearest to it.
    model = _mini_batch_k_means()(
        clusters, random_state=seed, batch_size=batch_size, reassignment_ratio=0.0, n_init=1, compute_labels=False
    )
    random = np.random.default_rng(seed)
    frames = 0
    for number in range(passes):
        frames = 0
        for batch in _batches(read(number), batch_size, random):
            if not frames and len(batch) < clusters:
                raise SettingError(
                    f"{len(batch)} frames make no {clusters} `clusters`: ask for fewer, or fit on more"
                )
            model.partial_fit(batch)
            frames += len(batch)
    if not frames:
        raise SettingError("there are no frames to fit")
    return model.cluster_centers_.astype(np.float32), frames


def check_settings(*, clusters: int, seed: int, batch_size: int, passes: int) -> None:
    """Raise SettingError if a setting of `fit_kmeans` is impossible."""
    for name, value in {"clusters": clusters, "batch_size": batch_size, "passes": passes}.items():
        if value < 1:
            raise SettingError(f"`{name}` must be at least 1, not {value}")
    if not 0 <= seed < 2**32:
        raise SettingError(f"`seed` must be at least 0 and below {2**32}, not {seed}")
    if batch_size < clusters:
        raise SettingError(f"`batch_size` must be at least {clusters}, as many as `clusters`, not {batch_size}")


def _batches(blocks: Iterable[Frames], size: int, random: np.random.Generator) -> Iterator[Frames]:
    """Shuffled batches of `size` frames to just under twice as many; of fewer if there are no more."""
    waiting: list[Frames] = []
    count = 0
    for block in blocks:
        waiting.append(block)
        count += len(block)
        if count >= _BATCHES_MIXED * size:
            yield from _split(_joined(waiting), size, random)
            count = 0
    if waiting:
        yield from _split(_joined(waiting), size, random)


def _joined(waiting: list[Frames]) -> Frames:
    """All that waits; nothing waits any more, so that there is never twice as much for long."""
    frames = np.concatenate(waiting)
    waiting.clear()
    return frames


def _split(frames: Frames, size: int, random: np.random.Generator) -> Iterator[Frames]:
    order = random.permutation(len(frames))
    for chosen in np.array_split(order, max(1, len(frames) // size)):
        yield frames[chosen]


def _mini_batch_k_means() -> Any:
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as error:
        raise MissingDependencyError(
            f"k-means needs scikit-learn, which does not import ({error}): pip install 'featurestore[labels]'"
        ) from error
    return MiniBatchKMeans
