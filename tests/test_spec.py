"""A spec has one fingerprint, whatever form it went through, and says what differs."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SettingError
from featurestore.spec import FeatureSpec, kinds_of_level

SPEC = FeatureSpec(
    layers=(0, 7),
    dim=768,
    model="m-a-p/MERT-v1-95M",
    revision="abc",
    weights_sha256="00ff",
    sample_rate=24_000,
    do_normalize=True,
    segment_duration=5.0,
    overlap=0.5,
    resampler="torchaudio sinc_interp_hann",
)

specs = st.builds(
    FeatureSpec,
    layers=st.sets(st.integers(0, 50), min_size=1).map(lambda x: tuple(sorted(x))),
    dim=st.integers(1, 4096),
    model=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    weights_sha256=st.none() | st.text("0123456789abcdef"),
    sample_rate=st.none() | st.integers(1, 10**6),
    do_normalize=st.none() | st.booleans(),
    segment_duration=st.none() | st.floats(0.1, 1e6),
    overlap=st.none() | st.floats(0, 0.99),
    dtype=st.sampled_from(["float32", "float16"]),
)


@pytest.mark.slow
@given(specs)
def test_what_json_keeps_gives_the_same_spec_back(spec):
    read = FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert read == spec
    assert read.fingerprint == spec.fingerprint


@pytest.mark.slow
@given(specs, specs)
def test_fingerprints_differ_exactly_where_settings_do(one, other):
    assert (one.fingerprint == other.fingerprint) == (one.differences(other) == {})


def test_whole_and_broken_numbers_of_one_value_are_two_settings():
    one, other = (FeatureSpec.from_dict({**SPEC.to_dict(), "segment_duration": x}) for x in (5, 5.0))
    assert one.fingerprint != other.fingerprint
    assert list(one.differences(other)) == ["segment_duration"]


def test_the_same_weights_are_the_same_model_wherever_they_lie():
    local = FeatureSpec.from_dict({**SPEC.to_dict(), "model": "/data/mert", "revision": None})
    assert local.fingerprint == SPEC.fingerprint
    assert SPEC.differences(local) == {}


def test_differences_are_named():
    other = FeatureSpec.from_dict({**SPEC.to_dict(), "overlap": 0.25, "layers": [7]})
    assert SPEC.differences(other) == {"layers": ([0, 7], [7]), "overlap": (0.5, 0.25)}


def test_arrays_made_elsewhere():
    assert FeatureSpec.for_arrays(layers=13, dim=768).layers == tuple(range(13))
    assert FeatureSpec.for_arrays(layers=[7], dim=768).layers == (7,)
    for layers in (np.int64(13), np.uint8(13), np.arange(13), list(np.arange(13)), range(13)):
        spec = FeatureSpec.for_arrays(layers=layers, dim=np.int32(768))
        assert spec == FeatureSpec.for_arrays(layers=13, dim=768)
        assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for layers in (True, np.True_, [True], np.arange(3) == 1, "3", 3.0, None):
        with pytest.raises(SettingError, match="layers"):
            FeatureSpec.for_arrays(layers=layers, dim=768)


@pytest.mark.parametrize(
    "values",
    [
        {"layers": [], "dim": 4},
        {"layers": [3, 1], "dim": 4},
        {"layers": [-1], "dim": 4},
        {"layers": [1, 1], "dim": 4},
        {"layers": ["1"], "dim": 4},
        {"layers": 3, "dim": 4},
        {"layers": [1], "dim": 0},
        {"layers": [1]},
        {"layers": [1], "dim": 4, "dtype": "int8"},
        {"layers": [1], "dim": 4, "surprise": 1},
        {"layers": [1], "dim": 2**18 + 1},
        {"layers": [2**31], "dim": 4},
        {"layers": list(range(1025)), "dim": 4},
        {"layers": list(range(1024)), "dim": 4097},
        *(
            {"layers": [1], "dim": 4, name: value}
            for name, value in (
                *(
                    ("model", ["x"]),
                    ("model", "\ud800"),
                    ("revision", 1),
                    ("precision", None),
                    ("resampler", True),
                ),
                *(("do_normalize", 1), ("sample_rate", 24e3), ("sample_rate", 0), ("sample_rate", 10**400)),
                *(("frame_rate", float("nan")), ("segment_duration", -1.0), ("overlap", 1.0), ("overlap", "foo")),
                *(("precision_cosines", ["x"]), ("precision_errors", [float("inf")])),
            )
        ),
    ],
)
def test_impossible_specs_are_refused(values):
    with pytest.raises(SettingError):
        FeatureSpec.from_dict(values)


def test_the_largest_specs_are_not_refused():
    assert FeatureSpec.for_arrays(layers=16, dim=2**18).dim == 2**18
    assert FeatureSpec.for_arrays(layers=[*range(1023), 2**31 - 1], dim=4096).dim == 4096


def test_unknown_feature_level_names_those_that_exist():
    with pytest.raises(SettingError, match="all, segments, aggregated"):
        kinds_of_level("everything")
