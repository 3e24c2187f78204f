"""Spectra equal their definitions, written down in float64 as plainly as possible; `logmel` is made of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import FeatureExtractor, load_model
from featurestore.errors import ModelError, SettingError
from featurestore.models import check_encoder
from featurestore.models.logmel import FLOOR, REVISION, STATES, LogMelEncoder
from featurestore.models.spectra import C1, ConstantQ, MelBands

RATE, HOP = 24_000, 320


def noise(n_samples, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal(n_samples).astype(np.float32)


def around(signal, middle, half):
    """Samples from middle - half to middle + half, silent outside of the signal."""
    where = np.arange(middle - half, middle + half + 1)
    inside = (where >= 0) & (where < len(signal))
    return np.where(inside, signal.astype(np.float64)[where.clip(0, len(signal) - 1)], 0)


def constant_q(signal, middles, frequencies, quality):
    found = np.empty((len(middles), len(frequencies)))
    for bin_, frequency in enumerate(frequencies):
        length = quality * RATE / frequency
        half = int(length // 2)
        time = np.arange(-half, half + 1)
        window = 0.5 + 0.5 * np.cos(2 * np.pi * time / length)
        kernel = window / window.sum() * np.exp(-2j * np.pi * frequency * time / RATE)
        found[:, bin_] = [2 * abs(around(signal, middle, half) @ kernel) for middle in middles]
    return found


def mel_power(signal, middles, bands, n_fft=2048):
    window = np.hanning(n_fft + 1)[:-1]
    found = np.empty((len(middles), bands))
    mels = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), bands + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    frequencies = np.arange(n_fft // 2 + 1) * RATE / n_fft
    weights = [np.interp(frequencies, corners[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(bands)]
    for row, middle in enumerate(middles):
        spectrum = np.fft.rfft(around(signal, middle, n_fft // 2)[:-1] * window) * 2 / window.sum()
        found[row] = np.array(weights) @ np.abs(spectrum) ** 2
    return found


def close(found, wanted, tolerance):
    np.testing.assert_allclose(found, wanted, atol=tolerance * wanted.max(), rtol=0)


@pytest.mark.parametrize(("first", "n_samples"), [(0, 30_000), (200, 30_000), (7, 5_000)])
@pytest.mark.slow
def test_the_constant_q_transform_is_its_definition(first, n_samples):
    signal = noise(n_samples)
    found = ConstantQ()(torch.from_numpy(signal)[None], 5, first)[0]
    chosen = slice(None, None, 13)
    frequencies = C1 * 2 ** (np.arange(336) / 48)
    wanted = constant_q(signal, first + HOP * np.arange(5), frequencies[chosen], 1 / (2 ** (1 / 48) - 1))
    close(found[:, chosen], wanted, 1e-4)


@pytest.mark.slow
@settings(max_examples=10)
@given(st.integers(0, 335), st.floats(0.01, 1), st.floats(0, 6))
def test_a_sine_has_its_amplitude_at_its_frequency(bin_, amplitude, phase):
    time = torch.arange(72_000, dtype=torch.float64) / RATE
    frequency = C1 * 2 ** (bin_ / 48)
    wave = (amplitude * torch.sin(2 * torch.pi * frequency * time + phase)).float()[None]
    found = ConstantQ()(wave, 1, 36_000)[0, 0]
    assert int(found.argmax()) == bin_
    assert float(found[bin_]) == pytest.approx(amplitude, rel=2e-3)


@pytest.mark.parametrize(
    ("hop", "bins", "bins_per_octave", "lowest"),
    [(75, 100, 12, 27.5), (256, 40, 24, 110.0), (512, 36, 36, 5_000.0)],
)
@pytest.mark.slow
def test_any_grid_of_frames_and_bins(hop, bins, bins_per_octave, lowest):
    signal = noise(20_000)
    transform = ConstantQ(hop=hop, bins=bins, bins_per_octave=bins_per_octave, lowest=lowest)
    found = transform(torch.from_numpy(signal)[None], 4, 5_001)[0]
    frequencies = lowest * 2 ** (np.arange(bins) / bins_per_octave)
    wanted = constant_q(signal, 5_001 + hop * np.arange(4), frequencies, 1 / (2 ** (1 / bins_per_octave) - 1))
    close(found, wanted, 1e-4)


def test_bins_above_half_the_rate_are_refused():
    with pytest.raises(SettingError, match="reach 16744 Hz; audio at 24000 Hz ends at 12000 Hz"):
        ConstantQ(bins=109, bins_per_octave=12)


def test_mel_bands_are_their_definition():
    signal = noise(6_000)
    found = MelBands(bands=128)(torch.from_numpy(signal)[None], 12, 200)[0]
    close(found, mel_power(signal, 200 + HOP * np.arange(12), 128), 1e-5)


@pytest.mark.slow
def test_logmel_keeps_the_rules_of_an_encoder():
    check_encoder(LogMelEncoder())


@pytest.mark.slow
def test_revision_1_of_logmel_is_this():
    """Whoever changes these numbers changes the revision, too: stores are compared by it."""
    assert REVISION == "1"
    signal = noise(12_000)
    states = LogMelEncoder().hidden_states(torch.from_numpy(signal)[None])[0]
    assert states.shape == (3, 37, 168)
    log_mel, log_q, chroma = states[:, ::12]
    middles = 200 + HOP * np.arange(0, 37, 12)
    np.testing.assert_allclose(log_mel, np.log(mel_power(signal, middles, 168) + FLOOR), atol=0.01)
    amplitudes = constant_q(signal, middles, C1 * 2 ** (np.arange(168) / 24), 1 / (2 ** (1 / 24) - 1))
    np.testing.assert_allclose(torch.exp(log_q) - FLOOR, amplitudes**2, atol=1e-4 * amplitudes.max() ** 2)
    classes = np.zeros((4, 12))
    for quarter in range(168):
        below, above = quarter // 2 % 12, (quarter + 1) // 2 % 12
        classes[:, below] += amplitudes[:, quarter] / 2
        classes[:, above] += amplitudes[:, quarter] / 2
    wanted = classes / np.sqrt((classes**2).sum(axis=1, keepdims=True) + FLOOR)
    np.testing.assert_allclose(chroma[:, :12], wanted, atol=1e-4)
    assert not chroma[:, 12:].any()


@pytest.mark.slow
def test_a_note_is_where_one_expects_it():
    """A at 440 Hz: the tenth pitch class, the 90th quarter tone from C1."""
    wave = torch.sin(2 * torch.pi * 440 * torch.arange(48_000) / RATE)[None]
    log_mel, log_q, chroma = LogMelEncoder().hidden_states(wave)[0].mean(dim=1)
    assert int(log_q.argmax()) == 90
    assert int(chroma.argmax()) == 9
    assert float(chroma[9]) > 0.95
    mels = 2595 * np.log10(1 + np.array([440, 12_000]) / 700)
    assert int(log_mel.argmax()) == round(mels[0] / mels[1] * 169) - 1


@pytest.mark.slow
def test_silence_is_the_floor():
    states = LogMelEncoder().hidden_states(torch.zeros(1, 24_000))[0]
    assert torch.allclose(states[:2], torch.log(torch.tensor(FLOOR)))
    assert not states[2].any()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 2.5, 5])
def test_frames_are_those_of_mert_v1(tiny, seconds):
    mert, spectra = load_model(tiny), load_model("logmel")
    n_samples = round(seconds * RATE)
    assert [mert.frames(n) for n in range(n_samples, n_samples + HOP)] == [
        spectra.frames(n) for n in range(n_samples, n_samples + HOP)
    ]


@pytest.mark.slow
def test_its_name_finds_it_and_its_revision_identifies_it():
    spec = FeatureExtractor(model="logmel").spec()
    assert (spec.model, spec.revision, spec.weights_sha256) == ("logmel", "1", None)
    assert (spec.dim, spec.layers, spec.frame_rate) == (168, tuple(range(len(STATES))), 75.0)
    assert load_model("logmel", revision="1").revision == "1"
    with pytest.raises(ModelError, match=r"logmel of this release .* revision '1', not the `revision` '0'"):
        load_model("logmel", revision="0")


def test_a_folder_of_the_same_name_comes_first(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.rename(tmp_path / "logmel")
    assert load_model("logmel").dim != 168


def test_other_bare_names_are_told_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no folder logmell, .* an installed package \(logmel, mini\)"):
        load_model("logmell")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 0), (1, 399), (24_000,)])
def test_windows_that_are_too_short_are_told(shape):
    with pytest.raises(SettingError, match="at least 400 samples"):
        LogMelEncoder().hidden_states(torch.zeros(shape))
    assert LogMelEncoder().hidden_states(torch.zeros(1, 400)).shape[:3] == (1, 3, 1)


@pytest.mark.parametrize("last", [-1, 3])
def test_a_state_that_it_has_not_is_refused(last):
    with pytest.raises(SettingError, match=f"logmel has hidden states 0 to 2, not {last}"):
        next(LogMelEncoder().states(torch.zeros(1, 400), last))
