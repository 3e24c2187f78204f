"""How windows get to the device and features back."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.encode.memory import first_line

logger = logging.getLogger("featurestore")


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

    def send(self, windows: Sequence[npt.NDArray[np.float32]]) -> Tensor:
        """Send windows of equal length, shape (samples,) each, to the device: tensor (windows, samples)."""
        return torch.from_numpy(np.stack(windows, dtype=np.float32)).to(self._device)

    def empty_on_host(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return memory of the host for results."""
        return torch.empty(shape, dtype=dtype)

    def receive(self, result: Tensor, into: Tensor) -> None:
        """Copy a result into C-contiguous memory; it is there when what `mark` returns has returned."""
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
        # Two, so that one is written while the other is sent: memory, and what waits until it is free again.
        self._buffers: deque[tuple[Tensor, Callable[[], Any]]] = deque(2 * [(torch.empty(0), lambda: None)])

    def send(self, windows: Sequence[npt.NDArray[np.float32]]) -> Tensor:
        """Send windows of equal length; what computes with them waits for them on the device."""
        shape = len(windows), len(windows[0])
        buffer, wait = self._buffers.popleft()
        wait()
        if buffer.numel() < math.prod(shape):
            buffer = torch.empty(math.prod(shape), dtype=torch.float32, pin_memory=True)
        pinned = buffer[: math.prod(shape)].view(shape)
        np.stack(windows, out=pinned.numpy())
        with torch.cuda.stream(self._inward):
            wave = pinned.to(self._device, non_blocking=True)
        self._buffers.append((buffer, _event(self._inward)))
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._inward)
        wave.record_stream(computing)
        return wave

    def empty_on_host(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return pinned memory of the host for results."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def receive(self, result: Tensor, into: Tensor) -> None:
        """Copy a result to pinned memory once it is computed."""
        result = result.contiguous()  # anything else would be copied twice, and waited for
        self._outward.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outward):
            into.copy_(result, non_blocking=True)
        result.record_stream(self._outward)

    def mark(self) -> Callable[[], Any]:
        """Return what waits for all results so far to arrive."""
        return _event(self._outward)


def _event(stream: torch.cuda.Stream) -> Callable[[], Any]:
    """Return what waits, asleep, for all that a stream has to do by now."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event.synchronize


def transfer_for(device: torch.device) -> Transfer:
    """Return the fastest transfer of a device: plain copies where the system pins no memory."""
    if device.type != "cuda":
        return Transfer(device)
    try:
        torch.empty(1, pin_memory=True)
        return PinnedTransfer(device)
    except RuntimeError as error:
        logger.warning("no memory can be pinned (%s): copies to %s will be slower", first_line(error), device)
        return Transfer(device)
