"""How windows get to the device and features back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Transfer:
    """Copies between numpy and a device, which have arrived when the call returns; for any device.

    Parameters
    ----------
    device : torch.device
        Where the model is.

    Attributes
    ----------
    overlaps : bool
        Whether the device computes while the host does something else, such as sending the next windows.
    """

    overlaps = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send(self, windows: npt.NDArray[np.float32]) -> Tensor:
        """Send windows, shape (windows, samples), to the device."""
        return torch.from_numpy(windows).to(self._device)

    def empty_on_host(self, *shape: int) -> Tensor:
        """Return memory of the host for float32 results."""
        return torch.empty(shape, dtype=torch.float32)

    def receive(self, result: Tensor, into: Tensor) -> None:
        """Copy a result, shape (windows, ...), to the host; it is there when what `mark` returns has returned."""
        into.copy_(result)

    def mark(self) -> Callable[[], Any]:
        """Return what waits for all copies so far to arrive."""
        return lambda: None


class PinnedTransfer(Transfer):
    """Copies through pinned memory on streams of their own, while a CUDA device computes.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # One stream for each direction: a result that waits for its layer must not hold up the next windows.
        self._inward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._outward = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, windows: npt.NDArray[np.float32]) -> Tensor:
        """Send windows, shape (windows, samples); what computes with them waits for them on the device."""
        pinned = torch.from_numpy(windows).pin_memory()
        with torch.cuda.stream(self._inward):
            wave = pinned.to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._inward)
        wave.record_stream(computing)
        return wave

    def empty_on_host(self, *shape: int) -> Tensor:
        """Return pinned memory of the host for float32 results."""
        return torch.empty(shape, dtype=torch.float32, pin_memory=True)

    def receive(self, result: Tensor, into: Tensor) -> None:
        """Copy a result, shape (windows, ...), to pinned memory once it is computed."""
        # Each window is contiguous on both sides: anything else would be copied twice, and waited for.
        result = result.contiguous()
        self._outward.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outward):
            for window, place in zip(result, into, strict=True):
                place.copy_(window, non_blocking=True)
        result.record_stream(self._outward)

    def mark(self) -> Callable[[], Any]:
        """Return what waits for all results so far to arrive."""
        event: torch.cuda.Event = self._outward.record_event()
        return event.synchronize


def transfer_for(device: torch.device) -> Transfer:
    """Return the fastest transfer of a device."""
    return PinnedTransfer(device) if device.type == "cuda" else Transfer(device)
