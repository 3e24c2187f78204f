"""Windows of minutes give what they would without pieces, and let go of weights behind them."""

from pathlib import Path

import pytest
import torch

from featurestore.models import conformer, frontends, load_model, save_random_checkpoint
from featurestore.models.paging import page_out


@pytest.fixture
def model(tmp_path):
    return load_model(save_random_checkpoint(tmp_path / "mert2", shape="mert2-tiny"))


@pytest.mark.slow
def test_pieces_change_nothing_but_the_rounding(model, monkeypatch):
    wave = torch.randn(2, 60_000, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = model.hidden_states(wave)
    monkeypatch.setattr(frontends, "_SPECTRA", 7)
    monkeypatch.setattr(conformer, "_ROWS", 5)
    assert torch.allclose(model.hidden_states(wave), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def resident_of(path):
    """Bytes of a file that are in this process's memory."""
    found, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and ":" not in line.split(" ", 1)[0]:
            mapped = line.endswith(str(path))
        elif mapped and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is resident is read from Linux")
def test_weights_leave_memory_and_come_back(tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "weights.safetensors"
    wanted = torch.randn(1024, 1024)
    save_file({"weight": wanted}, file)
    network = torch.nn.Linear(1024, 1024, bias=False)
    network.load_state_dict(load_file(file), assign=True)
    assert torch.equal(network.weight, wanted)
    before = resident_of(file)
    assert before >= wanted.nbytes
    page_out(network)
    assert resident_of(file) < before / 4
    assert torch.equal(network.weight, wanted)


def test_weights_of_its_own_stay_as_they_are():
    network = torch.nn.Linear(512, 512)
    before = network.weight.detach().clone()
    page_out(network)
    assert torch.equal(network.weight, before)
