"""Windows cover every sample, never twice the same, all of one length."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SettingError
from featurestore.windows import hop_samples, window_samples, window_starts


@given(
    n_samples=st.integers(1, 200_000),
    window=st.integers(1, 50_000),
    overlap=st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_every_sample_is_covered_by_equal_windows_none_twice(n_samples, window, overlap):
    hop = max(hop_samples(window, overlap), n_samples // 5_000, 1)
    starts = window_starts(n_samples, window, min(hop, window))
    length = min(window, n_samples)
    assert starts[0] == 0
    assert starts[-1] + length == n_samples
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= length).all()
    assert (steps[:-1] == min(hop, window)).all()


@given(window=st.integers(1, 10**7), overlap=st.floats(0, 1, exclude_max=True))
def test_hop_is_between_one_sample_and_the_window(window, overlap):
    assert 1 <= hop_samples(window, overlap) <= window


@pytest.mark.parametrize(
    ("seconds", "overlap", "starts"),
    [
        (2.5, 0.5, [0.0]),
        (5.0, 0.5, [0.0]),
        (7.5, 0.5, [0.0, 2.5]),
        (8.0, 0.5, [0.0, 2.5, 3.0]),
        (10.5, 0.3, [0.0, 3.5, 5.5]),
        (10.0, 0.0, [0.0, 5.0]),
    ],
)
def test_known_tracks(seconds, overlap, starts):
    rate = 24_000
    window = window_samples(5.0, rate)
    found = window_starts(round(seconds * rate), window, hop_samples(window, overlap))
    assert (found / rate).tolist() == starts


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, math.nan])
def test_overlap_outside_its_range_is_refused(overlap):
    with pytest.raises(SettingError, match="overlap"):
        hop_samples(100, overlap)


@pytest.mark.parametrize("duration", [0.0, -1.0, math.inf, math.nan, 1e-9])
def test_impossible_durations_are_refused(duration):
    with pytest.raises(SettingError, match="segment_duration"):
        window_samples(duration, 24_000)


@pytest.mark.parametrize("arguments", [(0, 10, 5), (10, 0, 5), (10, 10, 0)])
def test_nothing_is_windowed_without_samples(arguments):
    with pytest.raises(SettingError):
        window_starts(*arguments)
