"""Pooled features are means, exact to float32, of numpy arrays alone."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore.pooling import SegmentPool, pool_frames, pool_segments

values = st.floats(-1e6, 1e6, width=32)
tracks = hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=values)


@given(tracks)
@pytest.mark.slow
def test_means_of_exact_sums(segments):
    aggregated = pool_segments(segments)
    assert aggregated.dtype == np.float32
    np.testing.assert_allclose(aggregated, segments.astype(np.longdouble).mean(axis=0), rtol=1e-6, atol=1e-9)


@given(tracks, st.randoms())
def test_order_does_not_matter(segments, random):
    order = list(range(len(segments)))
    random.shuffle(order)
    np.testing.assert_allclose(pool_segments(segments), pool_segments(segments[order]), rtol=1e-6, atol=1e-6)


@given(hnp.arrays(np.float32, (2, 4), elements=values), st.integers(1, 5))
def test_the_mean_of_equal_segments_is_the_segment(segment, count):
    np.testing.assert_array_equal(pool_segments(np.repeat(segment[None], count, axis=0)), segment)


def test_many_segments_do_not_wear_down_the_sum():
    segments = np.full((200_000, 1, 1), 0.1, np.float32)
    segments[0] = 1e5
    exact = segments.astype(np.float64).mean()
    assert abs(pool_segments(segments)[0, 0] - exact) < 1e-7 * exact


def test_half_precision_features_are_pooled_in_float64():
    segments = np.full((4_000, 1, 1), 60_000, np.float16)
    assert pool_segments(segments)[0, 0] == np.float16(60_000)


@given(tracks, st.integers(1, 4))
def test_batches_change_nothing_but_rounding(segments, size):
    pool = SegmentPool(*segments.shape[1:])
    for start in range(0, len(segments), size):
        pool.add(segments[start : start + size])
    np.testing.assert_allclose(pool.mean(), pool_segments(segments), rtol=1e-6, atol=1e-6)


@given(
    hnp.arrays(
        np.float16, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5), elements=st.floats(-9, 9, width=16)
    )
)
def test_the_mean_over_frames_is_exact(raw):
    np.testing.assert_allclose(pool_frames(raw), raw.astype(np.longdouble).mean(axis=2), rtol=1e-12, atol=1e-12)


def test_nothing_but_numpy_is_imported():
    code = (
        "import featurestore.pooling, sys;"
        "print([x for x in ('torch', 'torchaudio', 'transformers', 'soundfile', 'zarr') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
