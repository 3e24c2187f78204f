"""One batch through the model: windows of equal length to states, their means, and why that failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.encode.card import arithmetic, check_not_lost
from featurestore.encode.memory import is_full_for_library, is_out_of_memory
from featurestore.encode.transfer import Transfer
from featurestore.errors import AudioTooShortError, ModelError
from featurestore.models.encoder import Encoder, check_state


@dataclass(frozen=True)
class Pending:
    """Features on their way from the device: means [window, layer, dim], frames [layer, window, frame, dim]."""

    segments: Tensor
    raw: Tensor | None
    wait: Callable[[], Any]


@dataclass(frozen=True)
class Full:
    """The memory that a batch needs is not there; a library says so for other reasons as well."""

    reason: str
    is_of_library: bool = False


Outcome = Pending | Full | Exception


class Forward:
    """Runs a model over one batch at a time; several threads may use it if they may use the model.

    The parameters are those of `batching.BatchEncoder`.
    """

    def __init__(
        self,
        *,
        model: Encoder,
        device: torch.device,
        layers: Sequence[int],
        half: torch.dtype | None,
        transfer: Transfer,
    ) -> None:
        self._model, self._device, self._half, self._transfer = model, device, half, transfer
        self._slots = {layer: slot for slot, layer in enumerate(layers)}

    def attempt(
        self,
        windows: Sequence[npt.NDArray[np.float32]],
        *,
        raw: torch.dtype | None,
        stop: threading.Event | None = None,
    ) -> Outcome:
        """Encode windows of equal length, or say why not: no traceback holds the memory of what did not fit.

        With `raw`, frames are given in this type besides their means. `stop` ends it at the next layer.
        """
        try:
            return self._encode(windows, raw, stop)
        except Exception as error:
            return self.failure(error)

    def arrived(self, outcome: Outcome) -> Outcome:
        """Wait for the results of a batch; a device may fail only now."""
        try:
            if isinstance(outcome, Pending):
                outcome.wait()
            return outcome
        except Exception as error:
            return self.failure(error)

    def failure(self, error: Exception) -> Full | Exception:
        """Tell full memory from other errors of a batch; that the device is lost ends all, and is raised."""
        if not isinstance(error, torch.OutOfMemoryError):
            check_not_lost(self._device, error)
        if not is_out_of_memory(error):
            return error
        return Full(str(error), is_full_for_library(error))

    def _encode(
        self, windows: Sequence[npt.NDArray[np.float32]], raw: torch.dtype | None, stop: threading.Event | None
    ) -> Pending:
        """Encode windows of equal length. That nobody waits for it any more ends it at the next layer."""
        transfer = self._transfer
        pooled: list[Tensor] = []
        frames: Tensor | None = None
        with torch.inference_mode(), arithmetic(self._device, self._half):
            for slot, (state, mean) in enumerate(self._computed(windows, stop)):
                pooled.append(mean)
                if raw is not None:
                    if frames is None:
                        frames = transfer.empty_on_host(len(self._slots), *state.shape, dtype=raw)
                    transfer.receive(state.to(raw), frames[slot])
            means = torch.stack(pooled, dim=1)
            segments = transfer.empty_on_host(*means.shape)
            transfer.receive(means, segments)
            return Pending(segments, frames, transfer.mark())

    def states(self, windows: Sequence[npt.NDArray[np.float32]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the wanted hidden states of windows of equal length and their means, each as it is computed."""
        computed = self._computed(windows, None)
        while True:
            # Entered for each: what takes a state is not to be in this mode.
            with torch.inference_mode(), arithmetic(self._device, self._half):
                found = next(computed, None)
            if found is None:
                return
            yield found

    def _computed(
        self, windows: Sequence[npt.NDArray[np.float32]], stop: threading.Event | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the wanted hidden states and their means, in the modes of the caller."""
        model, last, n_samples = self._model, max(self._slots), len(windows[0])
        if n_samples < model.min_samples:
            raise AudioTooShortError(
                f"{n_samples} samples at {model.sample_rate} Hz are too short for "
                f"{model.name}, which needs {model.min_samples}"
            )
        states = iter(model.states(self._transfer.send(windows), last=last))
        for layer in range(last + 1):
            state = next(states, None)
            if state is None:
                raise ModelError(f"{model.name} gave fewer hidden states than its `layers` promises")
            if layer in self._slots:
                check_state(model, layer, state, windows=len(windows), n_samples=n_samples)
                state = state.float()
                yield state, state.mean(dim=1)
            del state
            if layer < last and stop is not None and stop.is_set():
                raise CancelledError
