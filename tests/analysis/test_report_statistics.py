"""The numbers of a report."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.analysis.report.statistics import (
    axis,
    histogram,
    linear_cka,
    neighbours_kept,
    principal_axes,
    self_similarity,
    usual_rows,
)


def hsic(k, m):
    """The unbiased estimate as Song et al. write it."""
    n, ones = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    both = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + both - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def test_similarity_of_layers_is_the_unbiased_one():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(20, 6)), random.normal(size=(20, 4))
    other[:, 0] += one[:, 0]
    k, m = one @ one.T, other @ other.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    np.testing.assert_allclose(linear_cka([k, m]), [[1, expected], [expected, 1]], rtol=1e-5)


def test_independent_layers_are_not_alike():
    random = np.random.default_rng(1)
    rows = random.normal(size=(6, 14, 768))
    pairs = np.triu_indices(6, 1)
    assert abs(linear_cka([x @ x.T for x in rows])[pairs].mean()) < 0.1
    centred = [x - x.mean(axis=0) for x in rows]
    grams = np.stack([(x @ x.T).ravel() for x in centred])
    usual = grams @ grams.T / np.outer(*[np.linalg.norm(grams, axis=1)] * 2)
    assert usual[pairs].min() > 0.9  # what the other estimate finds in the same noise


def test_a_rotated_layer_is_the_same():
    random = np.random.default_rng(2)
    rows = random.normal(size=(30, 8)) * np.arange(1, 9) + 100
    turned = 3 * rows @ np.linalg.qr(random.normal(size=(8, 8)))[0]
    rows, turned = rows - rows.mean(axis=0), turned - turned.mean(axis=0)
    assert linear_cka([rows @ rows.T, turned @ turned.T])[0, 1] == pytest.approx(1, abs=1e-5)


def test_three_tracks_tell_nothing():
    assert np.isnan(linear_cka([np.eye(3), np.eye(3)])).all()


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_axes_are_those_of_the_singular_values(shape):
    rows = np.random.default_rng(3).normal(size=shape).astype(np.float32) * 3
    rows -= rows.mean(axis=0)
    axes, share = principal_axes(rows)
    _, values, vectors = np.linalg.svd(rows.astype(np.float64))
    np.testing.assert_allclose(np.abs(np.sum(axes * vectors[:2], axis=1)), 1, rtol=1e-4)
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-4)


def test_axes_that_do_not_exist_are_zero():
    line = np.outer(np.arange(-2, 3), [3.0, 4.0]).astype(np.float32)
    axes, share = principal_axes(line)
    np.testing.assert_allclose(axes, [[0.6, 0.8], [0, 0]], atol=1e-6)
    assert share == pytest.approx(1)
    assert not principal_axes(np.zeros((4, 3), np.float32))[0].any()


def test_a_plane_keeps_its_neighbours_and_noise_does_not():
    random = np.random.default_rng(4)
    plane = random.normal(size=(100, 2)).astype(np.float32)
    assert neighbours_kept(np.pad(plane, ((0, 0), (0, 5))), plane) == 1
    noise = random.normal(size=(300, 200)).astype(np.float32)
    assert neighbours_kept(noise, noise[:, :2]) < 0.2
    assert np.isnan(neighbours_kept(noise[:19], noise[:19, :2]))


def test_what_repeats_is_alike():
    random = np.random.default_rng(5)
    verse, chorus = random.normal(size=(2, 32))
    track = np.array([verse, chorus] * 3) + 10
    found = self_similarity(track, np.full(32, 10, np.float32), 96)
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)
    np.testing.assert_allclose(found[0, 2::2], 1, rtol=1e-5)
    assert found[0, 1] < 0.6
    assert self_similarity(track, np.full(32, 10, np.float32), 4).shape == (4, 4)
    assert np.isnan(self_similarity(np.zeros((2, 3)), np.zeros(3, np.float32), 9)).all()


@pytest.mark.slow
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_a_histogram_counts_everything(values):
    found = histogram(np.array([*values, np.nan]), "s")
    assert sum(found["counts"]) == found["known"] == len(values)
    assert (found["low"], found["high"]) == (min(values), max(values))
    assert all(a < b for a, b in zip(found["edges"], found["edges"][1:], strict=False))
    assert len(found["edges"]) == len(found["counts"]) + 1


def test_a_histogram_of_nothing():
    assert histogram(np.array([np.nan]), "s") is None


@pytest.mark.slow
@given(st.floats(1e-30, 1e30))
def test_an_axis_ends_at_a_round_number(highest):
    end = axis(highest)
    assert highest <= end <= 5 * highest
    assert f"{end:.0e}"[0] in "125"


def test_an_axis_of_nothing():
    assert axis(0) == axis(float("nan")) == 1


def test_extremes_move_nothing():
    rows = np.random.default_rng(6).normal(size=(50, 8)).astype(np.float32) + 10
    rows[3, 2], rows[4] = np.inf, 10_000
    assert np.flatnonzero(~usual_rows(rows)).tolist() == [3, 4]
    assert usual_rows(np.ones((4, 2), np.float32)).all()
    assert not usual_rows(np.full((2, 2), np.nan, np.float32)).any()
