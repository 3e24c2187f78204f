"""Which device runs the model, and how many windows at a time."""

from __future__ import annotations

import re

import torch

from featurestore.errors import DeviceError

_BATCH_SIZES = {"cpu": 2, "mps": 8, "cuda": 16}


def resolve_device(name: str) -> torch.device:
    """The device of a name; one that is asked for and missing is an error, never another device.

    Parameters
    ----------
    name : str
        "cpu", "cuda" (the first card), "cuda:N", "mps", or "auto": the first that exists of cuda, mps, cpu.

    Returns
    -------
    torch.device
        A CUDA device always has an index.

    Raises
    ------
    DeviceError
        If there is no such device on this machine; lists those that exist.
    """
    existing = existing_devices()
    if name == "auto":
        return torch.device(next(x for kind in ("cuda", "mps", "cpu") for x in existing if x.startswith(kind)))
    wanted = "cuda:0" if name == "cuda" else re.sub(r"^cuda:0*(?=\d)", "cuda:", name)
    if wanted in existing:
        return torch.device(wanted)
    if not re.fullmatch(r"cuda(:\d+)?|mps", name):
        raise DeviceError(f"device {name!r} is unknown; use cpu, cuda, cuda:N, mps or auto")
    raise DeviceError(
        f"device {name!r} is not on this machine; there is {', '.join(existing)}. "
        f"Use one of these, or auto for the fastest"
    )


def existing_devices() -> list[str]:
    """Names of the devices of this machine, the CPU first."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        "cpu",
        *(f"cuda:{index}" for index in range(cards)),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]


def default_batch_size(device: torch.device) -> int:
    """Windows of 5 s that a device encodes at a time: 2 on the CPU (for each core), 8 on mps, 16 on cuda."""
    return _BATCH_SIZES[device.type]
