"""The rules of an encoder: the documented example keeps them, and each broken rule is named."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from featurestore import FeatureExtractor, FeatureStore
from featurestore.errors import ModelError, SettingError
from featurestore.models import check_encoder, load_model
from featurestore.models.encoder import context_seconds, frame_rate

PAGE = Path(__file__).parent.parent.parent / "docs" / "guides" / "encoders.md"
GOLDEN = Path(__file__).parent.parent / "data" / "golden"
EXAMPLE, USE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
NAMES = {}
exec(EXAMPLE, NAMES)
Bands = NAMES["Bands"]


def test_the_documented_example_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("music").mkdir()
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    soundfile.write("music/a.wav", samples, 16_000, subtype="FLOAT")
    exec(USE, NAMES)
    store = FeatureStore("bands.zarr")
    assert (store.spec.model, store.spec.revision, store.spec.frame_rate) == ("bands", "1", 50.0)
    assert store.raw("a").shape == (1, 1, 99, 201)
    windows = np.lib.stride_tricks.sliding_window_view(samples, 400)[::320] * np.hanning(401)[:-1]
    wanted = np.log(np.abs(np.fft.rfft(windows)) ** 2 + 1e-6)
    np.testing.assert_allclose(np.asarray(store.raw("a"))[0, 0], wanted, atol=1e-2)


class Moody(Bands):
    def states(self, wave, last=None):
        for state in super().states(wave, last):
            yield state + torch.rand(1)


class Sociable(Bands):
    def states(self, wave, last=None):
        for state in super().states(wave, last):
            yield state - state.mean(dim=0) if len(wave) > 2 else state


class Infinite(Bands):
    def states(self, wave, last=None):
        for state in super().states(wave, last):
            yield state / wave.std(dim=1)[:, None, None]


class Untidy(Bands):
    def states(self, wave, last=None):
        wave -= wave.mean()
        yield from super().states(wave, last)


class Tireless(Bands):
    def states(self, wave, last=None):
        return super().states(wave)


class Hasty(Bands):
    def states(self, wave, last=None):
        for number, state in enumerate(super().states(wave, last)):
            yield state * 2 if number == last else state


class Reversed(Bands):
    def hidden_states(self, wave):
        return super().hidden_states(wave).flip(1)


class Rounded(Bands):
    def frames(self, n_samples):
        return max(0, (n_samples - 400) // 310 + 1)


class Eager(Bands):
    def frames(self, n_samples):
        return max(1, super().frames(n_samples))


class Strided(Bands):
    """Its second state has half the frames."""

    def states(self, wave, last=None):
        for number, state in enumerate(super().states(wave, last)):
            yield state[:, :: number + 1]


class Pooled(Bands):
    """Its second state has one frame, which would fit beside any other by broadcasting."""

    def states(self, wave, last=None):
        for number, state in enumerate(super().states(wave, last)):
            yield state.mean(dim=1, keepdim=True) if number else state


class Widening(Bands):
    def states(self, wave, last=None):
        for number, state in enumerate(super().states(wave, last)):
            yield state.repeat(1, 1, number + 1)


class Whole(Bands):
    def states(self, wave, last=None):
        for state in super().states(wave, last):
            yield state.round().long()


class Lost(Bands):
    def to(self, device):
        return None


class Limited(Bands):
    def frames(self, n_samples):
        if n_samples > 32_000:
            raise SettingError("2 s at most")
        return super().frames(n_samples)


BROKEN = {
    "`context_seconds`: a window so long is refused: 2 s at most": (Limited, {"context_seconds": 2.1}),
    "`context_seconds`: a window of 160 samples has no frame": (Bands, {"context_seconds": 0.01}),
    "`context_seconds`: it is '5'": (Bands, {"context_seconds": "5"}),
    "`context_seconds`: it is True": (Bands, {"context_seconds": True}),
    "`context_seconds`: it is nan": (Bands, {"context_seconds": float("nan")}),
    "`context_seconds`: it is 0": (Bands, {"context_seconds": 0}),
    "computed again": (Moody, {}),
    "of a batch of 4 differs": (Sociable, {}),
    "NaN or infinity": (Infinite, {}),
    "changes the samples": (Untidy, {}),
    "last=0 gives 2 states": (Tireless, {}),
    "differs with last=": (Hasty, {}),
    "`hidden_states`: it differs from the states": (Reversed, {}),
    "`frames`: state 0 of 8007 samples": (Rounded, {}),
    "`min_samples`: a window of 399 samples has 1 frames, not 0": (Eager, {}),
    r"`frames`: state 1 of 5333 samples has shape \(2, 8, 201\), not \(2, 16, 201\): all states": (Strided, {}),
    r"`frames`: state 1 of 5333 samples has shape \(2, 1, 201\)": (Pooled, {}),
    r"`dim`: state 1 of 400 samples has shape \(2, 1, 402\), not \(2, 1, 201\): all states": (Widening, {}),
    "is torch.int64, not a Tensor of floating point": (Whole, {}),
    "`to`: it returns None": (Lost, {}),
    "`layers`: there are 2 states, not 3": (Bands, {"layers": 2}),
    r"has shape \(2, 1, 201\), not \(2, 1, 200\)": (Bands, {"dim": 200}),
    "`name`": (Bands, {"name": ""}),
    "`revision`": (Bands, {"revision": 1}),
    "`weights_sha256`: it is 'abc'": (Bands, {"weights_sha256": "abc"}),
    "`sample_rate`: it is 16000.0": (Bands, {"sample_rate": 16_000.0}),
    "`do_normalize`": (Bands, {"do_normalize": None}),
    "`min_samples`: a window of 300 samples has no frame": (Bands, {"min_samples": 300}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_rule_is_named(message):
    kind, attributes = BROKEN[message]
    encoder = type(kind.__name__, (kind,), attributes)()
    with pytest.raises(ModelError, match=f"breaks the rule of .*{message}"):
        check_encoder(encoder)


@pytest.mark.parametrize("kind", [Strided, Pooled, Widening])
def test_extraction_makes_nothing_fit_either(tmp_path, kind):
    soundfile.write(tmp_path / "a.wav", np.zeros(32_000), 16_000)
    with pytest.raises(ModelError, match=r"state 1 of 16000 samples .*: all states of an encoder have"):
        FeatureExtractor(model=kind(), segment_duration=1.0).extract_track_features(tmp_path / "a.wav")


def test_a_sound_one_passes_on_any_device_that_is_there():
    check_encoder(Bands())
    with pytest.raises(ModelError, match="`to`"):
        check_encoder(Stubborn(), device="meta")


def test_the_context_of_a_model():
    found = {name: context_seconds(load_model(name)) for name in ("mini", "logmel")}
    assert found == {"mini": 5.0, "logmel": 5.0}
    assert context_seconds(load_model(GOLDEN / "mert2_30s")) == 30.0
    assert context_seconds(Limited()) == 5.0
    own = Limited()
    own.context_seconds = 2
    check_encoder(own)
    assert context_seconds(own) == 2.0


class Stubborn(Bands):
    def to(self, device):
        return self

    def states(self, wave, last=None):
        return super().states(torch.zeros(wave.shape), last)


def test_what_is_no_encoder_is_refused_before_any_work():
    with pytest.raises(SettingError, match=r"no name, revision, .*frames, states"):
        FeatureExtractor(model=object())
    with pytest.raises(SettingError, match=r"Linear .* has no name"):
        check_encoder(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(("samples", "rate"), [(400, None), (719, None), (720, 50.0), (16_000, 50.0)])
def test_the_frame_rate_is_exact(samples, rate):
    assert frame_rate(Bands(), samples) == rate


class Late(Bands):
    """Its first frame needs more samples than lie between two frames."""

    min_samples = 1_025

    def frames(self, n_samples):
        return n_samples // 640 if n_samples >= self.min_samples else 0


@pytest.mark.parametrize(("samples", "rate"), [(1_279, None), (1_920, 25.0), (80_000, 25.0)])
def test_the_frame_rate_is_exact_where_the_first_frame_is_longer(samples, rate):
    assert frame_rate(Late(), samples) == rate
