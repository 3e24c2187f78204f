"""Windows cover every sample, never twice the same, all of one length."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SettingError
from featurestore.windows import (
    equal_windows,
    hop_samples,
    sliding_windows,
    window_count,
    window_samples,
    window_starts,
)


@given(
    n_samples=st.integers(1, 200_000),
    window=st.integers(1, 50_000),
    overlap=st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_every_sample_is_covered_by_equal_windows_none_twice(n_samples, window, overlap):
    hop = max(hop_samples(window, overlap), n_samples // 5_000, 1)
    starts = window_starts(n_samples, window, min(hop, window))
    assert len(starts) == window_count(n_samples, window, min(hop, window))
    length = min(window, n_samples)
    assert starts[0] == 0
    assert starts[-1] + length == n_samples
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= length).all()
    assert (steps[:-1] == min(hop, window)).all()


@given(
    n_samples=st.integers(1, 10**8), longest=st.integers(1_000, 10**7), overlap=st.floats(0, 0.9) | st.just(0.0)
)
def test_equal_windows_are_the_fewest_that_cover_a_track(n_samples, longest, overlap):
    window, hop = equal_windows(n_samples, longest, overlap)
    count = window_count(n_samples, window, hop)
    assert 1 <= hop <= window <= min(longest, n_samples)
    assert n_samples <= window + (count - 1) * hop
    if n_samples <= longest:
        assert (window, count) == (n_samples, 1)
    else:
        assert count <= 1 + math.ceil((n_samples - longest) / (longest * (1 - overlap)))
        # A hop that is rounded up takes less than a sample from the overlap.
        assert window - hop > window * overlap - 1.001


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


NO_NUMBERS = [
    None,
    "0.5",
    b"1",
    True,
    False,
    np.True_,
    math.nan,
    np.float32("nan"),
    1j,
    [0.5],
    np.array([0.5]),
    {},
]
NO_NUMBERS += [np.array(0.5), math.inf, -math.inf]


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 1.5, *NO_NUMBERS])
@pytest.mark.parametrize("name", ["overlap", "overlap_ratio"])
def test_overlap_outside_its_range_is_refused(overlap, name):
    with pytest.raises(SettingError, match=rf"^`{name}` must be at least 0 and below 1, not "):
        hop_samples(100, overlap, name=name)


@pytest.mark.parametrize("rate", [0, -1, 0.5, 24_000.5, 1e9, *NO_NUMBERS])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(SettingError, match=r"^`sample_rate` must be a whole number of Hz, .*, not "):
        window_samples(1.0, rate)


@pytest.mark.parametrize("number", [8_000, 8_000.0, np.int32(8_000), np.float32(8_000), np.uint16(8_000)])
def test_numbers_of_any_type_will_do(number):
    assert window_samples(0.5, number) == 4_000
    assert window_samples(number / number, 8_000) == 8_000
    assert hop_samples(100, np.float64(0.5)) == hop_samples(np.int64(100), 0.5) == 50


@pytest.mark.parametrize("duration", [0.0, -1.0, math.inf, math.nan, 1e-9, 1e303, "5", None, True])
def test_impossible_durations_are_refused(duration):
    with pytest.raises(SettingError, match="segment_duration"):
        window_samples(duration, 24_000)


@pytest.mark.parametrize("arguments", [(0, 10, 5), (10, 0, 5), (10, 10, 0)])
def test_nothing_is_windowed_without_samples(arguments):
    with pytest.raises(SettingError):
        window_starts(*arguments)


@given(data=st.data(), n_samples=st.integers(1, 300), window=st.integers(1, 80), hop=st.integers(1, 100))
def test_a_track_in_blocks_has_the_windows_of_the_whole(data, n_samples, window, hop):
    track = np.arange(n_samples)
    cuts = sorted(data.draw(st.lists(st.integers(0, n_samples), max_size=12)))  # equal cuts are empty blocks
    found = list(sliding_windows(np.split(track, cuts), window, hop))
    assert [start for start, _ in found] == window_starts(n_samples, window, hop).tolist()
    for start, samples in found:
        assert samples.tolist() == track[start : start + window].tolist()


def test_windows_in_blocks_come_as_soon_as_they_are_whole_and_outlive_the_blocks():
    given_out, block = [], np.empty(4)

    def blocks():
        for i in range(5):
            given_out.append(i)
            block[:] = i
            yield block

    windows = sliding_windows(blocks(), 6, 3)
    start, samples = next(windows)
    assert (start, given_out) == (0, [0, 1])
    assert next(windows)[1].tolist() == [0, 1, 1, 1, 1, 2]
    list(windows)
    assert samples.tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("blocks", "window", "hop"), [([], 5, 5), ([np.zeros(0)], 5, 5), ([np.zeros(9)], 0, 1), ([np.zeros(9)], 1, 0)]
)
def test_nothing_is_windowed_in_blocks_without_samples(blocks, window, hop):
    with pytest.raises(SettingError):
        list(sliding_windows(blocks, window, hop))
