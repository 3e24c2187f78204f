"""Whether a card can be used, whether it still can after an error, and in what arithmetic devices compute."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from featurestore.encode.memory import first_line
from featurestore.errors import DeviceError, DeviceLostError
from featurestore.models.encoder import Encoder
from featurestore.models.kernels.fidelity import Fidelity, check_close, compared, test_signal
from featurestore.models.kernels.products import autocast_on_cpu

logger = logging.getLogger("featurestore")


def no_cards_because() -> str:
    """Say why CUDA finds no card, and what to do; empty where there is nothing to say but that there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"torch {torch.__version__} is built for CPUs alone: install a build for CUDA, "
            "see https://pytorch.org/get-started/locally"
        )
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"the environment hides all cards (CUDA_VISIBLE_DEVICES={hidden!r}): unset it, or name cards in it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        if "too old" in reason:
            reason = reason.split(" Please", 1)[0]
            return (
                f"{reason} torch {torch.__version__} is built for CUDA {torch.version.cuda}: "
                "update the driver, or install a torch for an older CUDA"
            )
        return reason
    return ""


def is_lost(device: torch.device) -> bool:
    """Tell whether a card has failed for good: after some errors, all that this process asks of it fails."""
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return "out of memory" not in str(error)
    return False


def check_not_lost(device: torch.device, error: Exception) -> None:
    """Raise DeviceLostError if a card has failed for good with this error."""
    if is_lost(device):
        raise DeviceLostError(
            f"{device} has failed, and can compute nothing any more ({first_line(error)})"
        ) from error


def try_out(
    model: Encoder, half_model: Encoder | None, device: torch.device, half: torch.dtype | None
) -> Fidelity | None:
    """Compute a short signal on a card, in float32 and in half, while its memory is free.

    Returns
    -------
    Fidelity or None
        How near half precision is to float32; None if there is no `half_model`.

    Raises
    ------
    DeviceError
        If this torch has no kernels for the card.
    SettingError
        If half precision is far from float32.
    """
    try:
        wave = test_signal(model.sample_rate, model.min_samples).to(device)
        with torch.inference_mode():
            with arithmetic(device, None):
                wanted = list(model.states(wave))
            if half_model is None:
                return None
            with arithmetic(device, half):
                found = compared(half_model.states(wave), wanted)
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            raise
        raise DeviceError(
            f"torch {torch.__version__} has no kernels for {device} ({_name(device)}; it has them for "
            f"{', '.join(torch.cuda.get_arch_list())}): install a torch for this card, or choose another `device`"
        ) from error
    name = str(half).removeprefix("torch.")
    check_close(found, f"{model.name} in {name} on {device}", "precision fp32")
    logger.info(
        "%s in %s on %s: centred cosines to float32 from %.5f, errors up to %.1e of the largest value",
        model.name,
        name,
        device,
        min(found.cosines),
        max(found.errors),
    )
    return found


def _name(device: torch.device) -> str:
    card = torch.cuda.get_device_properties(device)
    return f"{card.name}, of capability {card.major}.{card.minor}"


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute products and convolutions of float32 in float32, and sum up half precision in float32.

    By default cuDNN convolves in TF32, which has ten bits; cuBLAS does where somebody asked for it.
    """
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    settings: dict[tuple[Any, str], Any] = {
        (products, "allow_fp16_reduced_precision_reduction"): False,
        (products, "allow_bf16_reduced_precision_reduction"): False,
    }
    if hasattr(products, "fp32_precision"):  # from torch 2.9 on
        settings |= {(products, "fp32_precision"): "ieee", (convolutions.conv, "fp32_precision"): "ieee"}
    else:
        settings |= {(products, "allow_tf32"): False, (convolutions, "allow_tf32"): False}
    with _highest() if hasattr(products, "fp32_precision") else nullcontext():
        before = {(place, name): getattr(place, name) for place, name in settings}
        for (place, name), value in settings.items():
            setattr(place, name, value)
        try:
            yield
        finally:
            for (place, name), value in before.items():
                setattr(place, name, value)


@contextmanager
def _highest() -> Iterator[None]:
    """Set `torch.set_float32_matmul_precision` to what it must be beside the newer settings."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer settings were used
        before = "highest"
    newer = torch.backends.cuda.matmul.fp32_precision
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)
            torch.backends.cuda.matmul.fp32_precision = newer


def arithmetic(device: torch.device, half: torch.dtype | None) -> AbstractContextManager[Any]:
    """Half precision if it is wanted; on CUDA: on this card, and true float32 elsewhere."""
    if device.type != "cuda":
        return autocast_on_cpu(half) if device.type == "cpu" else nullcontext()
    contexts = ExitStack()
    contexts.enter_context(torch.cuda.device(device))
    contexts.enter_context(exact_float32())
    if half is not None:
        contexts.enter_context(torch.autocast("cuda", dtype=half))
    return contexts
