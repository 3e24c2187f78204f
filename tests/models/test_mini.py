"""`mini` comes with the library: a MERT that needs no hub, of the frames of MERT v1, and small."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import featurestore.models
from featurestore import FeatureExtractor
from featurestore.errors import ModelError
from featurestore.models import MertEncoder, check_encoder, load_model
from featurestore.models.checkpoints.files import weights_sha256
from featurestore.models.kernels.engine import CpuEngine, deviation

FOLDER = Path(featurestore.models.__file__).with_name("mini")
MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def mini():
    return load_model("mini")


@pytest.mark.slow
def test_it_is_a_mert_of_24_khz_and_75_frames_a_second(mini):
    assert isinstance(mini, MertEncoder)
    assert (mini.name, mini.sample_rate, mini.min_samples) == ("mini", 24_000, 400)
    states = mini.hidden_states(torch.randn(2, 120_000, generator=torch.Generator().manual_seed(0)))
    assert states.shape == (2, mini.layers + 1, 374, mini.dim)
    assert states.isfinite().all()
    check_encoder(mini)


def test_it_is_small_and_in_half_precision_and_computes_in_single(mini):
    assert sum(x.stat().st_size for x in FOLDER.iterdir()) <= MOST_BYTES
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(x).dtype for x in file.keys()} == {torch.float16}  # noqa: SIM118 (not a dict)
    assert {x.dtype for x in mini.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_engine_for_cpus_fits_it(mini):
    assert deviation(CpuEngine(mini), mini) < 1e-5


@pytest.mark.slow
def test_a_store_knows_it_by_its_weights():
    spec = FeatureExtractor(model="mini").spec()
    assert (spec.model, spec.weights_sha256) == ("mini", weights_sha256([FOLDER / "model.safetensors"]))


@pytest.mark.slow
def test_silence_gives_finite_features(mini):
    assert mini.hidden_states(torch.zeros(1, 24_000)).isfinite().all()


@pytest.mark.slow
def test_it_hears_which_note_sounds(mini):
    """Notes of other partials than those of the nearest mean are told apart by pitch: it is no random network."""
    time = torch.arange(24_000) / 24_000
    keys = range(48, 84)

    def notes(partials):
        hertz = torch.tensor([440 * 2 ** ((key - 69) / 12) for key in keys])[:, None]
        return sum(w * torch.sin(2 * torch.pi * k * hertz * time) for k, w in enumerate(partials, 1)) * 0.2

    known, others = (mini.hidden_states(notes(x))[:, 1].mean(dim=1) for x in ((1, 0.5, 0.3), (1, 0.4, 0.2, 0.1)))
    nearest = torch.cdist(others, known).argmin(dim=1)
    assert (nearest == torch.arange(len(keys))).float().mean() > 0.8


@pytest.mark.slow
def test_it_has_no_revision_to_choose():
    with pytest.raises(ModelError, match="mini of this release"):
        load_model("mini", revision="main")


def test_a_folder_of_the_same_name_comes_first(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.rename(tmp_path / "mini")
    assert load_model("mini").dim == json.loads((tmp_path / "mini" / "config.json").read_text())["hidden_size"]
