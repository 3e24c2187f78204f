"""segment_audio and load_audio refuse what they cannot use by its name, and know older keywords."""

import math

import numpy as np
import pytest

from featurestore import load_audio, segment_audio, validate_audio_file
from featurestore.errors import AudioNotFoundError, SettingError

SIGNAL = np.arange(24_000, dtype=np.float32)
ODD = [
    None,
    "1",
    b"1",
    True,
    False,
    math.nan,
    math.inf,
    0,
    -1,
    1j,
    [1],
    np.array([1, 2]),
    np.True_,
    np.float32("nan"),
]


@pytest.mark.parametrize("value", [*ODD, 0.5, 24_000.5])
def test_an_odd_rate_is_refused(value):
    with pytest.raises(SettingError, match=r"^`sample_rate` must be"):
        segment_audio(SIGNAL, sample_rate=value)


@pytest.mark.parametrize("value", ODD)
def test_an_odd_duration_is_refused(value):
    with pytest.raises(SettingError, match=r"^`segment_duration` must be"):
        segment_audio(SIGNAL, segment_duration=value)


@pytest.mark.parametrize("value", [x for x in ODD if type(x) is not int or x != 0] + [1, 1.5])
def test_an_odd_overlap_is_refused(value):
    with pytest.raises(SettingError, match=r"^`overlap_ratio` must be"):
        segment_audio(SIGNAL, overlap_ratio=value)


@pytest.mark.parametrize(
    "audio",
    [
        None,
        1.0,
        "abc",
        [],
        np.zeros((2, 100)),
        np.zeros((0, 2)),
        np.zeros(0),
        np.zeros(100, complex),
        np.zeros(100, bool),
        np.array([0.0, None]),
        np.array(["a", "b"]),
        np.zeros(100, "datetime64[s]"),
        np.zeros(100, [("left", "f4"), ("right", "f4")]),
        [[1.0], [1.0, 2.0]],
        {"audio": 1},
    ],
    ids=repr,
)
def test_odd_audio_is_refused(audio):
    with pytest.raises(SettingError, match=r"^`audio` must"):
        segment_audio(audio)


def test_tensors_that_are_no_arrays_are_refused():
    import torch

    with pytest.raises(SettingError, match=r"^`audio` must be an array of samples: "):
        segment_audio(torch.zeros(100, requires_grad=True))
    assert segment_audio(torch.zeros(100)).shape == (1, 100)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "u1", ">f4"])
def test_real_samples_of_any_type_are_cut(dtype):
    segments = segment_audio(SIGNAL.astype(dtype), np.float32(0.5), np.float64(0.5), np.int64(24_000))
    assert segments.shape == (3, 12_000)
    assert segments.dtype == dtype
    assert segment_audio([1, 2, 3], 1, 0, 2.0).tolist() == [[1, 2], [2, 3]]


@pytest.mark.parametrize("value", [*ODD, 24_000.5, 999, 768_001])
def test_an_odd_target_rate_is_refused(write, value):
    with pytest.raises(SettingError, match=r"^`target_sr`: the sample rate must be"):
        load_audio(write(), target_sr=value)


def test_the_older_keyword_of_a_path(write):
    path = write()
    expected = load_audio(path, 8_000)
    np.testing.assert_array_equal(load_audio(audio_path=path, target_sr=8_000), expected)
    np.testing.assert_array_equal(load_audio(path=str(path), target_sr=8_000), expected)
    assert validate_audio_file(audio_path=path) == validate_audio_file(path)
    with pytest.raises(AudioNotFoundError):
        load_audio(audio_path="nowhere.wav")
    for function in (load_audio, validate_audio_file):
        with pytest.raises(SettingError, match="`path` and `audio_path` are two names of the same: give one"):
            function(path, audio_path=path)
        with pytest.raises(SettingError, match="`path` must be given"):
            function()
