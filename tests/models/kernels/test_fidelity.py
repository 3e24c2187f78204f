"""The measure of what a faster form of an encoder loses."""

import pytest
import torch

from featurestore.errors import SettingError
from featurestore.models import load_model, save_random_checkpoint
from featurestore.models.kernels import fidelity as measure
from featurestore.models.kernels.fidelity import check_close, compared


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_random_checkpoint(tmp_path_factory.mktemp("tiny"), shape="tiny"))


@pytest.mark.slow
def test_the_measure_sees_what_it_is_to_see(model):
    waves = measure.test_signal(model.sample_rate, model.min_samples)
    assert waves.shape == (8, 12_000)
    assert waves.abs().amax(dim=1).tolist() == pytest.approx([0.5 ** (n / 2) for n in range(8)])
    same = compared(model.states(waves), model.states(waves))
    assert same.cosines == pytest.approx([1.0] * 4)
    assert same.errors == (0.0,) * 4

    class Shifted:
        def states(self, wave, last=None):
            return (state + 0.03 * state.std() for state in model.states(wave))

    shifted = compared(Shifted().states(waves), model.states(waves))
    assert all(0.9 < cosine < 0.9999 for cosine in shifted.cosines)


@pytest.mark.slow
def test_what_pooling_keeps_is_measured_too(model):
    waves = measure.test_signal(24_000, 400)

    class Moved:
        """Each window moves as a whole: little to a frame, much to the mean of a window."""

        def states(self, wave, last=None):
            for state in model.states(wave, last):
                means = state.mean(dim=1, keepdim=True)
                yield state + (means - means.mean(dim=0)).flip(0)

    cosines = compared(Moved().states(waves), model.states(waves)).cosines
    for found, wanted, cosine in zip(Moved().states(waves), model.states(waves), cosines, strict=True):
        pooled, mean = wanted.mean(dim=1), wanted.mean(dim=(0, 1))
        direct = torch.nn.functional.cosine_similarity(
            (found.mean(dim=1) - mean).flatten(), (pooled - mean).flatten(), dim=0
        )
        assert cosine == pytest.approx(float(direct), abs=1e-4)


def test_a_state_that_is_not_finite_is_refused():
    exact = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    states = exact.clone()
    states[2, 1, 0, 0] = torch.inf
    says = "x in float16 is far from float32 .* hidden state 2 is nan .* use precision fp32"
    with pytest.raises(SettingError, match=says):
        check_close(compared(states, exact), "x in float16", "precision fp32")
