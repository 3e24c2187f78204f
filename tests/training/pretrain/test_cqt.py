"""The constant-Q target: computed in every step it is that of the file, and both are those of MERT's code."""

import pytest
import torch

from featurestore.training.pretrain import load_recipe, pretrain
from featurestore.training.pretrain.corpus import Frames
from featurestore.training.pretrain.cqt import CqtTarget
from featurestore.training.pretrain.settings import CqtSettings
from tests.training.pretrain.conftest import SMALL, lines_of, make_data, recipe_for

SECONDS = 1.2
"""90 whole frames: a file is a window, and both end in the same silence."""


def steps_of(out):
    return [x for x in lines_of(out) if "loss" in x]


@pytest.fixture(scope="module")
def short_data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "music", files=4, seconds=SECONDS)


@pytest.mark.slow
def test_spectra_of_every_step_teach_what_those_of_the_file_teach(short_data, tmp_path):
    found = {}
    for compute in ("once", "always"):
        recipe = recipe_for(short_data, data={"window": SECONDS}, cqt={"compute": compute}, run={"steps": 4})
        report = pretrain(recipe, tmp_path / compute)
        found[compute] = [x["cqt"] for x in steps_of(tmp_path / compute)]
        found[compute].append(report.valid["cqt"])
        assert bool(list(short_data.glob("train.cqt-*.f16"))) == (compute == "once")
        for path in short_data.glob("*.cqt-*"):
            path.unlink()
    # The file is in half precision.
    assert found["always"] == pytest.approx(found["once"], rel=1e-3)
    assert min(found["once"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["95m", "330m"])
def test_a_published_recipe_trains_a_small_network(short_data, tmp_path, preset):
    """All of it is as published, float16 too, but for the shape and what the data have."""
    recipe = load_recipe(
        preset,
        {
            "data": {"folder": str(short_data), "labels": ["km"], "window": SECONDS},
            "model": {"shape": "tiny", "config": {**SMALL, "do_stable_layer_norm": preset == "330m"}},
            "mixing": {"seconds": [0.1, 0.2]},
            "run": {"steps": 2, "batch": 2, "log_every": 1, "valid_windows": 2},
        },
    )
    assert recipe.cqt.compute == "always"
    report = pretrain(recipe, tmp_path)
    assert report.steps == 2
    for line in (*steps_of(tmp_path), report.valid):
        assert all(line[name] > 0 for name in ("loss", "km", "features", "cqt"))
    assert not list(short_data.glob("*.cqt-*"))


@pytest.mark.parametrize(("sound", "tolerance"), [("noise", 5e-3), ("tone", 5e-4)])
def test_targets_have_the_scale_of_nnaudio(sound, tolerance):
    """As MERT's code calls it: differences are those of windows that nnAudio rounds to whole samples."""
    features = pytest.importorskip("nnAudio.features")
    theirs = features.cqt.CQT(
        sr=24_000,
        hop_length=320,
        fmin=32.7,
        fmax=None,
        n_bins=336,
        bins_per_octave=48,
        filter_scale=1,
        norm=1,
        window="hann",
        center=True,
        pad_mode="constant",
        trainable=False,
        output_format="Magnitude",
        verbose=False,
    )
    ours = CqtTarget(CqtSettings(), Frames(24_000, 320, 48_000, 149))
    draw = torch.Generator().manual_seed(0)
    wave = {
        "noise": 0.1 * torch.randn(1, 48_000, generator=draw),
        "tone": 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(48_000)[None] / 24_000),
    }[sound]
    wanted, found = theirs(wave).transpose(1, 2)[:, :149], ours(wave, 149)
    assert float((wanted - found).abs().max() / wanted.max()) < tolerance
    assert float((wanted * found).sum() / found.square().sum()) == pytest.approx(1, abs=2e-4)
