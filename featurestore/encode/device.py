"""Which device runs the model, in what arithmetic, and how many windows at a time."""

from __future__ import annotations

import logging
import math
import re

import torch

from featurestore.choices import PRECISION_CHOICES
from featurestore.encode.card import no_cards_because
from featurestore.errors import DeviceError, SettingError
from featurestore.models.kernels.products import bf16_gain, bf16_products
from featurestore.models.warning_filters import suppress_warnings

logger = logging.getLogger("featurestore")

WORTHWHILE = 1.25
"""How many times as fast as those in float32 products in bf16 have to be: not all of a network is products."""

_BATCH_SIZES = {"cpu": 4, "mps": 8}
_CUDA_BATCH = 16
"""Windows that 8 GB of a card are enough for; twice as much memory takes twice as many, 128 at most."""


def resolve_device(name: str | torch.device) -> torch.device:
    """Find the device of a name; one that is asked for and missing is an error, never another device.

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
    name, existing = str(name), existing_devices()
    if name == "auto":
        return torch.device(next(x for kind in ("cuda", "mps", "cpu") for x in existing if x.startswith(kind)))
    wanted = "cuda:0" if name == "cuda" else re.sub(r"^cuda:0*(?=\d)", "cuda:", name)
    if wanted in existing:
        return torch.device(wanted)
    if not re.fullmatch(r"cuda(:\d+)?|mps", name):
        raise DeviceError(f"`device` {name!r} is unknown; use cpu, cuda, cuda:N, mps or auto")
    reason = no_cards_because() if name.startswith("cuda") and not any("cuda" in x for x in existing) else ""
    raise DeviceError(
        f"`device` {name!r} is not on this machine; there is {', '.join(existing)}. "
        + (f"CUDA finds no card: {reason}" if reason else "Use one of these, or auto for the fastest")
    )


def resolve_devices(names: str) -> list[str]:
    """List the devices that a build uses, with a process for each if there are several.

    Parameters
    ----------
    names : str
        One or more names with commas between them, as for `resolve_device`; the same one may stand there several
        times. "auto" is every CUDA device of the machine, or else the one that `resolve_device` takes.

    Returns
    -------
    list of str
        At least one.

    Raises
    ------
    DeviceError
        If one of them does not exist, or "auto" is one of several.
    """
    if names == "auto":
        cards = [name for name in existing_devices() if name.startswith("cuda")]
        return cards or [str(resolve_device("auto"))]
    listed = [name.strip() for name in str(names).split(",")]
    if len(listed) > 1 and "auto" in listed:
        raise DeviceError(f"`device` {names!r}: auto stands for all devices, and not in a list")
    return [str(resolve_device(name)) for name in listed]


def resolve_precision(name: str | None, *, mixed_precision: bool, device: torch.device) -> str:
    """Find the arithmetic of a name, as a spec records it.

    Parameters
    ----------
    name : {"fp32", "fp16", "bf16", "auto"} or None
        None for the device's own: fp16 on cuda unless mixed precision is off, fp32 elsewhere. "auto" takes bf16
        on a CPU where it is faster, too, by at least `WORTHWHILE`.
    mixed_precision : bool
        False is another way to say fp32, and contradicts fp16 and bf16.
    device : torch.device
        Where the model runs: fp16 is for cuda, bf16 for cards and processors that have it.

    Raises
    ------
    SettingError
        If there is no such precision, or not there.
    """
    if name is None:
        return "fp16" if mixed_precision and device.type == "cuda" else "fp32"
    if name not in PRECISION_CHOICES:
        raise SettingError(f"`precision` must be one of {', '.join(PRECISION_CHOICES)}, not {name!r}")
    if name == "fp32":
        return name
    if name == "auto":
        if device.type == "cpu" and mixed_precision and bf16_gain() >= WORTHWHILE:
            return "bf16"
        return resolve_precision(None, mixed_precision=mixed_precision, device=device)
    if not mixed_precision:
        raise SettingError(
            f"`precision` {name} is mixed precision, which `mixed_precision=False` turns off: leave out one"
        )
    if device.type == "cpu" and name == "bf16":
        if bf16_products() is None:
            raise SettingError(
                "`precision` bf16 needs a processor with bf16 products (amx_bf16 or avx512_bf16), and this "
                "one has none: use fp32, or auto for bf16 where it is fast"
            )
        if (gain := bf16_gain()) < 1:
            logger.warning(
                "this processor multiplies in bf16 at %.1f times the speed of fp32: `precision` fp32 is faster",
                gain,
            )
        return name
    if device.type != "cuda":
        raise SettingError(f"`precision` {name} is for cuda, not for {device}: use fp32, or `device='cuda'`")
    if name == "bf16":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise SettingError(f"{device} cannot calculate in `precision` bf16: use fp16 or fp32")
    return name


def existing_devices() -> list[str]:
    """List the devices of this machine, the CPU first."""
    with suppress_warnings("torch"):  # of a driver that is too old, which `no_cards_because` says better
        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        "cpu",
        *(f"cuda:{index}" for index in range(cards)),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]


def default_batch_size(device: torch.device) -> int:
    """Return how many windows of 5 s a device encodes at a time: 4 on the CPU, 8 on mps, 16 to 128 on cuda."""
    if device.type != "cuda":
        return _BATCH_SIZES[device.type]
    doublings = math.floor(math.log2(torch.cuda.get_device_properties(device).total_memory / 8e9))
    return int(_CUDA_BATCH * 2.0 ** max(-2, min(3, doublings)))
