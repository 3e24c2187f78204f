"""Which device runs the model, and how many windows at a time."""

from __future__ import annotations

import re

import torch

from featurestore.errors import DeviceError, SettingError

_BATCH_SIZES = {"cpu": 4, "mps": 8, "cuda": 16}


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


def resolve_precision(name: str | None, *, mixed_precision: bool, device: torch.device) -> str:
    """The arithmetic of a name, as a spec records it.

    Parameters
    ----------
    name : {"fp32", "fp16", "int8"} or None
        None for the device's own: fp16 on cuda unless mixed precision is off, fp32 elsewhere.
    mixed_precision : bool
        False is another way to say fp32, and contradicts fp16.
    device : torch.device
        Where the model runs: fp16 is for cuda, int8 for the CPU.

    Raises
    ------
    SettingError
        If there is no such precision, or not there.
    """
    if name is None:
        return "fp16" if mixed_precision and device.type == "cuda" else "fp32"
    if name not in ("fp32", "fp16", "int8"):
        raise SettingError(f"precision must be fp32, fp16 or int8, not {name!r}")
    if name == "fp16" and not mixed_precision:
        raise SettingError("precision fp16 is mixed precision, which is turned off: leave one of them out")
    for precision, kind in (("fp16", "cuda"), ("int8", "cpu")):
        if name == precision and device.type != kind:
            raise SettingError(f"precision {name} is for {kind}, not for {device}: use fp32, or --device {kind}")
    return name


def existing_devices() -> list[str]:
    """Names of the devices of this machine, the CPU first."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        "cpu",
        *(f"cuda:{index}" for index in range(cards)),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]


def default_batch_size(device: torch.device) -> int:
    """Windows of 5 s that a device encodes at a time: 4 on the CPU, 8 on mps, 16 on cuda."""
    return _BATCH_SIZES[device.type]
