"""Overlapping windows become one sequence of frames: each frame once, in order, from where it is known best."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import FeatureSpec, FeatureStore, StoreWriter
from featurestore.errors import SettingError, TrackNotFoundError
from featurestore.training.labels.frames import count_frames, stitch, track_frames
from featurestore.windows import hop_samples, window_starts

RATE, HOP, FIELD = 24_000, 320, 400


def frames_of(n_samples):
    return (n_samples - FIELD) // HOP + 1


tracks = st.tuples(
    st.integers(8_000, 400_000),  # samples of the track
    st.integers(8_000, 130_000),  # of a window
    st.floats(0, 0.95),  # overlap
)


def laid(track):
    n_samples, window, overlap = track
    starts = window_starts(n_samples, window, hop_samples(window, overlap))
    return starts, frames_of(min(window, n_samples))


@given(tracks)
@pytest.mark.slow
def test_there_are_as_many_frames_as_of_the_whole_track_or_one_fewer(track):
    starts, frames = laid(track)
    pieces = stitch(starts / RATE, frames, RATE / HOP)
    assert len(pieces) == len(starts)
    assert frames_of(track[0]) - sum(map(len, pieces)) in (0, 1)


@given(tracks)
def test_each_frame_is_the_nearest_of_its_window(track):
    starts, frames = laid(track)
    pieces = stitch(starts / RATE, frames, RATE / HOP)
    stands = np.concatenate([s + HOP * piece for s, piece in zip(starts, pieces, strict=True)])
    wanted = HOP * np.arange(len(stands))
    # Half a frame; without overlap, half of the gap between the last frame of a window and the first of the next.
    gaps = starts[1:] - starts[:-1] - HOP * (frames - 1)
    assert abs(stands - wanted).max() <= max([HOP / 2, *(gaps / 2 + HOP / 2)]) + 1e-6
    assert all((piece >= 0).all() and (piece < frames).all() for piece in pieces)
    assert (np.diff(stands) >= -HOP / 2).all()


@given(tracks)
def test_each_frame_is_of_the_window_whose_middle_is_nearest(track):
    starts, frames = laid(track)
    pieces = stitch(starts / RATE, frames, RATE / HOP)
    middles = starts / HOP + (frames - 1) / 2
    owner = np.repeat(np.arange(len(starts)), [len(piece) for piece in pieces])
    times = np.arange(len(owner))
    best = abs(times[:, None] - middles).min(axis=1)
    assert (abs(times - middles[owner]) <= best + 1e-5).all()


def test_windows_of_5_s_that_do_not_overlap():
    """374 frames each, 375 apart: the frame between two windows is the last one of the first again."""
    first, second = stitch([0, 5], 374, 75)
    assert first.tolist() == [*range(374), 373]
    assert second.tolist() == list(range(374))


def test_windows_of_5_s_that_overlap_by_half():
    """Between 187.5 frames: the second window's frames are half a frame late, and the later one is taken."""
    first, second, third = stitch([0, 2.5, 5], 374, 75)
    assert first.tolist() == list(range(281))
    assert second.tolist() == list(range(281 - 187, 468 - 187))
    assert third.tolist() == list(range(468 - 375, 374))


@pytest.fixture
def small(tmp_path):
    def write(spec, segments, **options):
        with StoreWriter(tmp_path / "s.zarr", spec=spec) as writer, writer.track("a/b") as track:
            raw = np.arange(segments * 2 * 5 * 3, dtype=np.float32).reshape(segments, 2, 5, 3)
            track.append(raw=raw, **options)
        return FeatureStore(tmp_path / "s.zarr"), raw

    return write


SPEC = dataclasses.replace(FeatureSpec.for_arrays(layers=[0, 4], dim=3), frame_rate=10.0)


def test_frames_of_a_track_are_read_window_by_window(small):
    store, raw = small(SPEC, 2, starts=[0.0, 0.3])
    blocks = list(track_frames(store, "a/b", 4))
    # Middles at frames 2 and 5: 3.5 is half-way.
    np.testing.assert_array_equal(np.concatenate(blocks), [*raw[0, 1, :4], *raw[1, 1, 1:]])
    assert [len(x) for x in blocks] == [4, 4]
    assert count_frames(store, "a/b", 4) == 8


def test_a_store_that_does_not_know_its_times_cannot_be_stitched(small, tmp_path):
    store, _ = small(SPEC, 2)
    with pytest.raises(SettingError, match="where the windows of 'a/b' start"):
        list(track_frames(store, "a/b", 0))


def test_a_store_without_a_frame_rate_cannot_be_stitched(small):
    store, _ = small(FeatureSpec.for_arrays(layers=2, dim=3), 1)
    with pytest.raises(SettingError, match="how many frames a second"):
        list(track_frames(store, "a/b", 0))


def test_what_is_not_there_is_named(small):
    store, _ = small(SPEC, 1)
    with pytest.raises(SettingError, match="no layer 1"):
        list(track_frames(store, "a/b", 1))
    with pytest.raises(TrackNotFoundError, match="a/c"):
        list(track_frames(store, "a/c", 0))
