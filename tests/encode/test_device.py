"""A device that is asked for is the one that is used, or an error that lists what there is."""

from types import SimpleNamespace

import pytest
import torch

from featurestore.encode import default_batch_size, resolve_device
from featurestore.encode.device import resolve_devices
from featurestore.errors import DeviceError, SettingError


@pytest.fixture
def machine(monkeypatch):
    """Makes torch report the devices of another machine."""

    def report(*, cards=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return report


@pytest.mark.parametrize(
    ("name", "cards", "mps", "device"),
    [
        ("cpu", 2, True, "cpu"),
        ("cuda", 2, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
        ("auto", 2, True, "cuda:0"),
        ("auto", 0, True, "mps"),
        ("auto", 0, False, "cpu"),
    ],
)
def test_names(machine, name, cards, mps, device):
    machine(cards=cards, mps=mps)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "cards", "listed"),
    [
        ("cuda", 0, "there is cpu"),
        ("mps", 1, "there is cpu, cuda:0"),
        ("cuda:3", 2, "there is cpu, cuda:0, cuda:1"),
    ],
)
def test_a_missing_device_is_never_replaced(machine, name, cards, listed):
    machine(cards=cards)
    with pytest.raises(DeviceError, match=f"{name}.*{listed}"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "CPU", "cpu:0", "xpu"])
def test_an_unknown_device(name):
    with pytest.raises(SettingError, match="use cpu, cuda, cuda:N, mps or auto"):
        resolve_device(name)


def test_batch_sizes():
    sizes = {kind: default_batch_size(torch.device(kind)) for kind in ("cpu", "mps")}
    assert sizes == {"cpu": 4, "mps": 8}


@pytest.mark.parametrize(
    ("gigabytes", "size"), [(2, 4), (4.2, 8), (8.3, 16), (12, 16), (24, 32), (40, 64), (85, 128), (150, 128)]
)
def test_batch_sizes_of_cards_follow_their_memory(monkeypatch, gigabytes, size):
    card = SimpleNamespace(total_memory=gigabytes * 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert default_batch_size(torch.device("cuda:0")) == size


@pytest.mark.parametrize(
    ("names", "cards", "mps", "devices"),
    [
        ("cpu", 2, False, ["cpu"]),
        ("cuda", 2, False, ["cuda:0"]),
        ("cuda:1, cuda:0", 2, False, ["cuda:1", "cuda:0"]),
        ("cpu,cpu", 0, False, ["cpu", "cpu"]),
        ("auto", 3, True, ["cuda:0", "cuda:1", "cuda:2"]),
        ("auto", 0, True, ["mps"]),
        ("auto", 0, False, ["cpu"]),
    ],
)
def test_devices_of_a_build(machine, names, cards, mps, devices):
    machine(cards=cards, mps=mps)
    assert resolve_devices(names) == devices


@pytest.mark.parametrize("names", ["", ",", "cpu,", "cuda:0,cuda:1", "auto,cpu", "cuda:0;cuda:0"])
def test_lists_of_devices_that_are_none(machine, names):
    machine(cards=1)
    with pytest.raises(DeviceError):
        resolve_devices(names)
