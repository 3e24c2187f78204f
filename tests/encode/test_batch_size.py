"""Windows of many tracks become full batches of one length; sizes shrink at once and grow with care."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.encode.batch_size import GROW_AFTER, GROW_TRIALS, PATIENCE, BatchSize, Window, grouped

TRACKS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([10, 10, 10, 4, 7])), max_size=12)


def windows_of(tracks):
    return [
        Window(owner, start, np.zeros(length, np.float32))
        for owner, (count, length) in enumerate(tracks)
        for start in range(count)
    ]


@given(tracks=TRACKS, size=st.integers(1, 6))
@pytest.mark.slow
def test_every_window_once_in_the_order_of_its_track_and_one_length_a_group(tracks, size):
    groups = list(grouped(windows_of(tracks), lambda: size))
    assert all(1 <= len(group) <= size for group in groups)
    assert all(len({len(window.samples) for window in group}) == 1 for group in groups)
    dealt = [(window.owner, window.start) for group in groups for window in group]
    for owner, (count, _) in enumerate(tracks):
        assert [start for other, start in dealt if other == owner] == list(range(count))
    # Windows of a track stand together in a group, so that their results do too.
    for group in groups:
        owners = [owner for owner, _ in groupby(window.owner for window in group)]
        assert len(owners) == len(set(owners))


@given(tracks=TRACKS, size=st.integers(1, 6))
def test_all_groups_of_the_common_length_are_full_but_the_last(tracks, size):
    common = [(count, 10) for count, _ in tracks]
    groups = list(grouped(windows_of(common), lambda: size))
    assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1)


@given(tracks=TRACKS, size=st.integers(1, 6))
def test_no_window_waits_for_long_and_few_wait(tracks, size):
    drawn = []

    def source():
        for window in windows_of(tracks):
            drawn.append(window)
            yield window

    given_out = 0
    for group in grouped(source(), lambda: size):
        given_out += len(group)
        waited = [drawn.index(window) for window in group]
        if len(drawn) < len(windows_of(tracks)):
            # Counted from when it was first looked at: one group is given out at a time.
            assert len(drawn) - min(waited) <= (PATIENCE + 3) * size + 3
            assert len(drawn) - given_out <= (PATIENCE + 3) * size + 3


def test_short_tracks_of_one_length_share_a_group():
    (group,) = grouped(windows_of([(1, 4), (1, 4), (1, 4)]), lambda: 8)
    assert [window.owner for window in group] == [0, 1, 2]


def test_what_waits_is_given_out_when_the_source_wants_results():
    one, two, three = windows_of([(1, 10), (1, 4), (1, 10)])
    assert list(grouped([one, two, None, None, three], lambda: 8)) == [[one], [two], None, None, [three]]


def test_the_size_may_change_on_the_way():
    sizes = iter([4, 4, 4, 4, 4, 2, 2, 2, 2])
    groups = grouped(windows_of([(6, 10)]), lambda: next(sizes))
    assert len(next(groups)) in (3, 4)


def test_a_full_memory_halves_the_size_of_what_failed():
    size = BatchSize(16)
    size.full(16)
    assert size.now == 8
    size.full(3)  # the last windows of something
    assert size.now == 1


def test_it_grows_after_many_that_fitted_and_never_beyond_what_was_wanted():
    size = BatchSize(6)
    size.full(6)
    for expected in (3, 6, 6):
        for _ in range(GROW_AFTER):
            assert size.now == expected
            size.fitted(size.now)


def test_small_batches_say_nothing():
    size = BatchSize(8)
    size.full(8)
    for _ in range(2 * GROW_AFTER):
        size.fitted(1)
    assert size.now == 4


def test_after_failed_trials_it_stays():
    size, tried = BatchSize(8), 0
    size.full(8)
    for _ in range(10 * GROW_AFTER):
        if size.now > 4:
            tried += 1
            size.full(size.now)
        else:
            size.fitted(size.now)
    assert tried == GROW_TRIALS
    assert size.now == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 16)), max_size=300), st.integers(1, 16))
def test_the_size_stays_within_bounds(events, wanted):
    size = BatchSize(wanted)
    for fits, count in events:
        count = min(count, size.now)
        if fits or count == 1:
            size.fitted(count)
        else:
            size.full(count)
        assert 1 <= size.now <= wanted
