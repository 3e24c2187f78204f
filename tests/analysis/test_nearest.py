"""Nearest neighbours: those of brute force, for any size of the blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.analysis.neighbours import METRICS, NeighbourIndex
from featurestore.errors import SettingError

RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(400, 16)) @ RNG.normal(size=(16, 16)) + 5).astype(np.float32)
ROWS[9] = ROWS[7]
ROWS[20] = 0


def brute_force(metric, queries, left_out, k):
    rows = ROWS.astype(np.float64)
    if metric != "cosine":
        rows = rows - rows.mean(axis=0)
    if metric == "whitened":
        rows = rows @ np.linalg.cholesky(np.linalg.inv(np.cov(rows.T, bias=True)))
    lengths = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore"):
        scores = rows[queries] @ rows.T / lengths / lengths[queries, None]
    for row, unwanted in zip(scores, left_out, strict=True):
        row[unwanted] = -np.inf
    return np.sort(last(scores), axis=1)[:, ::-1][:, :k], scores


def last(scores):
    """What is left out, or no number, as the smallest."""
    return np.where(np.isfinite(scores), scores, -2)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@given(
    size=st.integers(1, 500), queries=st.lists(st.integers(0, 19), min_size=1, max_size=5), k=st.integers(1, 400)
)
def test_they_are_those_of_brute_force_for_any_block(metric, size, queries, k):
    index = NeighbourIndex(lambda first, last: ROWS[first:last], ROWS.shape, metric)
    index._size = size
    left_out = [np.array([query, 100]) for query in queries]
    for _ in range(2):  # with lengths that are known by then, too
        rows, near = index.search(ROWS[queries], k, left_out)
        wanted, scores = brute_force(metric, queries, left_out, k)
        ours = np.take_along_axis(scores, rows, axis=1)
        np.testing.assert_allclose(last(near), last(ours), atol=2e-5)
        np.testing.assert_allclose(last(ours), wanted, atol=2e-5)
        assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_equally_near_rows_come_in_order():
    rows = np.tile(np.array([[1.0, 0], [0, 1]], np.float32), (50, 1))
    for size in (1, 3, 100):
        index = NeighbourIndex(lambda first, last: rows[first:last], rows.shape, "cosine")
        index._size = size
        assert index.search(rows[:1], 4)[0].tolist() == [[0, 2, 4, 6]]


def test_rows_without_a_direction_come_last():
    index = NeighbourIndex(lambda first, last: ROWS[first:last], ROWS.shape, "cosine")
    rows, scores = index.search(ROWS[:1], 400)
    assert rows[0, -1] == 20
    assert np.isnan(scores[0, -1])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(SettingError, match="centred-cosine"):
        NeighbourIndex(lambda first, last: ROWS[first:last], ROWS.shape, "euclid")
    with pytest.raises(SettingError, match="at least 80 rows"):
        NeighbourIndex(lambda first, last: ROWS[first:last], (79, 16), "whitened")
