"""Windows to features in batches: early exit, pooling as layers are computed, recovery from full memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featurestore.errors import AudioTooShortError, ExtractionError, ModelError
from featurestore.extract.transfer import Transfer, transfer_for
from featurestore.extract.workers import single_core_threads
from featurestore.models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Features of consecutive windows of a track.

    Parameters
    ----------
    starts : list of float
        Where the windows begin, seconds.
    segments : ndarray of float32, shape (segments, layers, dim)
        Mean over frames.
    raw : ndarray of float32, shape (segments, layers, frames, dim), or None
        None unless asked for.
    """

    starts: list[float]
    segments: npt.NDArray[np.float32]
    raw: npt.NDArray[np.float32] | None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Windows that are encoded together, and their copy on the device once there is one."""

    starts: list[int]
    windows: npt.NDArray[np.float32]
    wave: Tensor | None = None

    def split(self, size: int) -> list[_Batch]:
        """Batches of at most `size` windows, not yet on the device."""
        return [
            _Batch(starts=self.starts[i : i + size], windows=self.windows[i : i + size])
            for i in range(0, len(self.starts), size)
        ]


@dataclass(frozen=True, kw_only=True)
class _Pending:
    """Features on their way from the device."""

    starts: list[int]
    segments: Tensor
    raw: Tensor | None
    wait: Callable[[], Any]


class BatchEncoder:
    """Runs a model over windows of equal length.

    Parameters
    ----------
    model : Encoder
        Already on `device`.
    device : torch.device
        Where the model is.
    batch_size : int
        Windows that are encoded together at first.
    layers : sequence of int
        Hidden states that are wanted, ascending; nothing beyond the last one is computed.
    half : bool
        Mixed precision; for CUDA.
    oom_recovery : bool
        Halve a batch that does not fit into memory, down to 1.
    transfer : Transfer, optional
        By default the fastest of the device.
    workers : int
        Batches that are encoded at a time, each by one core; for the CPU and a model that several threads can
        use. A track with too few windows for them is encoded with all cores together.

    Attributes
    ----------
    batch_size : int
        Windows that are encoded together by now.
    """

    def __init__(
        self,
        *,
        model: Encoder,
        device: torch.device,
        batch_size: int,
        layers: Sequence[int],
        half: bool = False,
        oom_recovery: bool = True,
        transfer: Transfer | None = None,
        workers: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self._model, self._device = model, device
        self._slots = {layer: slot for slot, layer in enumerate(layers)}
        self._half, self._oom_recovery = half, oom_recovery
        self._transfer = transfer_for(device) if transfer is None else transfer
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def encode(
        self, windows: Iterable[tuple[int, npt.NDArray[np.float32]]], *, raw: bool
    ) -> Iterator[EncodedBatch]:
        """Features of the windows of a track, in their order.

        While a CUDA device computes a batch, the next one is drawn from `windows` and sent.

        Parameters
        ----------
        windows : iterable of (int, ndarray of float32, shape (samples,))
            First sample and samples; all of one length.
        raw : bool
            Whether the frames are wanted, besides their means.

        Yields
        ------
        EncodedBatch

        Raises
        ------
        AudioTooShortError
            If a window is too short for a single frame.
        ExtractionError
            If a single window does not fit into memory (any batch, without recovery), or if features are not
            finite.
        """
        source = iter(windows)
        queue: deque[_Batch] = deque()
        if self._workers > 1:
            self._draw(source, queue, self._workers * self.batch_size)
        if queue and len(queue[0].starts) > self._workers // 2:
            yield from self._by_workers(source, queue, raw=raw)
        else:
            yield from self._in_turn(source, queue, raw=raw)

    def _in_turn(
        self, source: Iterator[tuple[int, npt.NDArray[np.float32]]], queue: deque[_Batch], *, raw: bool
    ) -> Iterator[EncodedBatch]:
        """Encode one batch after the other: first those of the queue, then those that are drawn."""
        while queue or self._draw(source, queue, self.batch_size):
            batch = queue.popleft()
            pending = None
            if len(batch.starts) <= self.batch_size:
                pending = self._fitting(batch, partial(self._encode, batch, raw=raw))
            if pending is None:
                queue.extendleft(reversed(batch.split(self.batch_size)))
                continue
            if not queue and self._transfer.overlaps:
                self._draw(source, queue, self.batch_size)
            yield self._finish(pending)

    def _by_workers(
        self, source: Iterator[tuple[int, npt.NDArray[np.float32]]], drawn: deque[_Batch], *, raw: bool
    ) -> Iterator[EncodedBatch]:
        """Deal batches to the workers, and give their results in order."""
        if self._pool is None:
            self._pool = single_core_threads(self._workers)
        stop = threading.Event()
        dealt: deque[_Batch] = deque()
        running: deque[tuple[_Batch, Future[_Pending]]] = deque()
        try:
            while True:
                # One batch waits, so that no worker has to until the results of another are written.
                while len(running) <= self._workers:
                    if not dealt and (drawn or self._draw(source, drawn, self._workers * self.batch_size)):
                        windows = drawn.popleft()
                        # The last windows of a track in equal parts.
                        share = -(-len(windows.starts) // self._workers)
                        dealt.extend(windows.split(min(share, self.batch_size)))
                    if not dealt:
                        break
                    batch = dealt.popleft()
                    running.append((batch, self._pool.submit(self._encode, batch, raw=raw, stop=stop)))
                if not running:
                    return
                batch, future = running.popleft()
                pending = self._fitting(batch, future.result)
                if pending is not None:
                    yield self._finish(pending)
                    continue
                del future  # it holds the tensors that filled the memory
                wait([future for _, future in running])
                yield from self._in_turn(iter(()), deque([batch]), raw=raw)
        finally:
            stop.set()
            for _, future in running:
                future.cancel()

    def _draw(
        self, source: Iterator[tuple[int, npt.NDArray[np.float32]]], queue: deque[_Batch], most: int
    ) -> bool:
        """Put the next windows, at most so many, into the queue, already on the device if they fit."""
        drawn = list(islice(source, most))
        if not drawn:
            return False
        starts = [start for start, _ in drawn]
        windows = np.stack([window for _, window in drawn], dtype=np.float32, casting="same_kind")
        if windows.shape[1] < self._model.min_samples:
            raise AudioTooShortError(
                f"{windows.shape[1]} samples at {self._model.sample_rate} Hz are too short for "
                f"{self._model.name}, which needs {self._model.min_samples}"
            )
        wave = None
        # Tried again when the batch before it has left.
        with suppress(torch.OutOfMemoryError):
            wave = self._transfer.send(windows)
        queue.append(_Batch(starts=starts, windows=windows, wave=wave))
        return True

    def _fitting(self, batch: _Batch, encode: Callable[[], _Pending]) -> _Pending | None:
        """What `encode` gives of a batch; None if that does not fit and `batch_size` has been reduced."""
        try:
            return encode()
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = str(error)
        except RuntimeError as error:
            if not _is_full_host(error):
                raise
            reason = str(error)
        # Out of the handler, where the error's traceback no longer holds the tensors that filled the memory.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        elif self._device.type == "mps":
            torch.mps.empty_cache()
        size = len(batch.starts)
        if size > 1 and self._oom_recovery:
            self.batch_size = min(self.batch_size, size // 2)
            return None
        advice = (
            "shorten segment_duration or choose a device with more memory"
            if size == 1
            else "choose a smaller batch_size, or leave oom_recovery on"
        )
        raise ExtractionError(
            f"{self._device} is out of memory with {size} window(s) of {batch.windows.shape[1]} samples "
            f"at a time: {advice} ({reason.split(chr(10), 1)[0]})"
        )

    def _encode(self, batch: _Batch, *, raw: bool, stop: threading.Event | None = None) -> _Pending:
        """Encode a batch. That nobody waits for it any more ends it at the next layer."""
        transfer, slots = self._transfer, self._slots
        pooled: list[Tensor] = []
        frames: Tensor | None = None
        last = max(slots)
        with torch.inference_mode(), self._arithmetic():
            wave = transfer.send(batch.windows) if batch.wave is None else batch.wave
            for layer, state in enumerate(self._model.states(wave, last=last)):
                if layer in slots:
                    state = state.float()
                    pooled.append(state.mean(dim=1))
                    if raw:
                        if frames is None:
                            frames = transfer.room(len(state), len(slots), *state.shape[1:])
                        for window, result in enumerate(state):
                            transfer.receive(result, frames[window, slots[layer]])
                if layer == last:
                    break
                if stop is not None and stop.is_set():
                    raise CancelledError
            if len(pooled) != len(slots):
                raise ModelError(f"{self._model.name} gave fewer hidden states than its `layers` promises")
            means = torch.stack(pooled, dim=1)
            segments = transfer.room(*means.shape)
            transfer.receive(means, segments)
        return _Pending(starts=batch.starts, segments=segments, raw=frames, wait=transfer.mark())

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Half precision where it is safe, or else true float32: by default cuDNN convolves in TF32."""
        if self._device.type != "cuda":
            return nullcontext()
        contexts = ExitStack()
        if self._half:
            contexts.enter_context(torch.autocast("cuda", dtype=torch.float16))
        else:
            contexts.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        return contexts

    def _finish(self, pending: _Pending) -> EncodedBatch:
        pending.wait()
        segments = pending.segments.numpy()
        if not np.isfinite(segments).all():
            raise ExtractionError(
                f"{self._model.name} gives features that are not finite: "
                + ("try --no-mixed-precision" if self._half else "are its weights or the audio damaged?")
            )
        rate = self._model.sample_rate
        return EncodedBatch(
            starts=[start / rate for start in pending.starts],
            segments=segments,
            raw=None if pending.raw is None else pending.raw.numpy(),
        )


def _is_full_host(error: RuntimeError) -> bool:
    """Whether torch's allocator of the CPU failed: it has no error class of its own, but gives its name."""
    return "DefaultCPUAllocator: " in str(error)
