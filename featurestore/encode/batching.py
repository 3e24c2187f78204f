"""Windows to features in batches: early exit, pooling as layers are computed, recovery from full memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from featurestore.encode.batch_size import BatchSize, T, Window, grouped
from featurestore.encode.forward import Forward, Full, Outcome, Pending
from featurestore.encode.memory import first_line, forget_memory
from featurestore.encode.threads import single_core_threads
from featurestore.encode.transfer import Transfer, transfer_for
from featurestore.errors import ExtractionError
from featurestore.models.encoder import Encoder

STREAM_BYTES = 1 << 28
"""Frames of a window beyond this are given out state by state where that is asked for."""


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Features of consecutive windows of a track.

    Parameters
    ----------
    starts : list of float
        Where the windows begin, seconds.
    end : float
        Where the last one ends, seconds.
    segments : ndarray of float32, shape (segments, layers, dim)
        Mean over frames.
    raw : ndarray of float32 or float16, shape (segments, layers, frames, dim), or None
        None unless asked for. Each [frame, dim] is contiguous.
    """

    starts: list[float]
    end: float
    segments: npt.NDArray[np.float32]
    raw: npt.NDArray[Any] | None


@dataclass(frozen=True)
class EncodedState:
    """The next wanted state of a long window, ahead of the `EncodedBatch` of it, which then has no raw."""

    frames: npt.NDArray[Any]  # float32 or float16, shape (frames, dim)


class BatchEncoder:
    """Runs a model over windows of equal length.

    Parameters
    ----------
    model : Encoder
        The model, which is on `device` already.
    device : torch.device
        Where the model is.
    batch_size : int
        Windows that are encoded together at first: by all workers, at least one by each.
    layers : sequence of int
        Hidden states that are wanted, ascending; nothing beyond the last one is computed.
    half : torch.dtype, optional
        float16 or bfloat16 for mixed precision on CUDA.
    oom_recovery : bool
        Halve a batch that does not fit into memory, down to 1; `batch_size.BatchSize` says when it grows again.
    transfer : Transfer, optional
        By default the fastest of the device.
    workers : int
        Batches that are encoded at a time, each by one core; for the CPU and a model that several threads can
        use. Too few windows for them are encoded with all cores together.
    """

    def __init__(
        self,
        *,
        model: Encoder,
        device: torch.device,
        batch_size: int,
        layers: Sequence[int],
        half: torch.dtype | None = None,
        oom_recovery: bool = True,
        transfer: Transfer | None = None,
        workers: int = 1,
    ) -> None:
        self._size = BatchSize(batch_size)
        self._model, self._device = model, device
        self._layers, self._oom_recovery = len(layers), oom_recovery
        self._in_half = half is not None or getattr(model, "dtype", torch.float32) == torch.bfloat16
        self._transfer = transfer_for(device) if transfer is None else transfer
        self._forward = Forward(model=model, device=device, layers=layers, half=half, transfer=self._transfer)
        self._workers = workers
        # One batch more than is computed: no worker waits until the results of another are written, and a device
        # that computes while the host does something else has its next batch when it is done.
        self._at_a_time = workers + 1 if workers > 1 or self._transfer.overlaps else 1
        self._pool: ThreadPoolExecutor | None = None

    @property
    def batch_size(self) -> int:
        """Return how many windows are encoded together by now."""
        return self._size.now

    def encode(
        self, windows: Iterable[tuple[int, npt.NDArray[np.float32]]], *, raw: bool
    ) -> Iterator[EncodedBatch]:
        """Compute the features of the windows of one track: the first sample and the samples of each.

        All have one length. An error that `encode_tracks` yields in the place of a batch is raised.
        """
        of_one = (Window(None, start, samples) for start, samples in windows)
        with closing(self.encode_tracks(of_one, raw=raw)) as results:
            for _, result in results:
                if isinstance(result, Exception):
                    raise result
                if isinstance(result, EncodedBatch):
                    yield result

    def encode_tracks(
        self, windows: Iterable[Window[T] | None], *, raw: bool, stream: bool = False, dtype: str = "float32"
    ) -> Generator[tuple[T, EncodedBatch | EncodedState | Exception], None, None]:
        """Compute the features of the windows of many tracks, in batches across their borders.

        Windows are drawn as they are needed. Batches have `batch_size` windows of one length; smaller ones come
        where windows of a length end.

        Parameters
        ----------
        windows : iterable of Window or None
            Those of a track in order and of one length; other tracks may be in between. None says that there will
            be more only after results have been given out.
        raw : bool
            Whether the frames are wanted, besides their means.
        stream : bool
            Give the frames of a window of more than `STREAM_BYTES` state by state, as they are computed.
        dtype : {"float32", "float16"}
            Type of the frames: what is stored in float16 is cast on the device, and half as much comes back.

        Yields
        ------
        owner : object
            The owner of the windows.
        result : EncodedBatch, EncodedState or Exception
            Features of the owner's next windows, in order; or why they could not be had, which is no reason for
            other owners to fail.

        Raises
        ------
        DeviceLostError
            If a card fails for good.
        """
        stop, frames = threading.Event(), getattr(torch, dtype) if raw else None
        groups = grouped(windows, lambda: max(self._workers, self._size.now))
        dealt: deque[list[Window[T]]] = deque()
        long: deque[Window[T]] = deque()  # until what was begun before them has been given out
        running: deque[tuple[list[Window[T]], Future[Outcome]]] = deque()
        more, together = True, True
        try:
            while more or running or long:
                while more and not long and len(running) < self._at_a_time and not any(map(_is_full, running)):
                    if not dealt:
                        group = next(groups, _END)
                        more = group is not _END
                        if not isinstance(group, list):
                            break
                        if raw and stream and self._is_long(group[0]):
                            long.extend(group)
                            break
                        together = not running and len(group) <= self._workers // 2
                        dealt.extend(self._shares(group, 1 if together else self._workers))
                    batch = dealt.popleft()
                    running.append((batch, self._begin(batch, frames, None if together else stop)))
                if running:
                    batch, future = running.popleft()
                    if _is_full((batch, future)):
                        wait([other for _, other in running])
                    settled = self._settled(batch, future.result(), frames)
                    del future  # of an error, it would hold the memory of what failed
                    yield from settled
                while long and not running:
                    yield from self._streamed(long.popleft(), frames)
        finally:
            stop.set()
            for _, future in running:
                future.cancel()

    def _shares(self, group: list[Window[T]], parts: int) -> list[list[Window[T]]]:
        """Cut a group into equal parts, of at most `batch_size` windows."""
        share = min(-(-len(group) // parts), self._size.now)
        return [group[i : i + share] for i in range(0, len(group), share)]

    def _begin(
        self, batch: list[Window[T]], raw: torch.dtype | None, stop: threading.Event | None
    ) -> Future[Outcome]:
        """Have a batch encoded: by a worker, or here and now (by a device that may still be at it)."""
        if self._workers > 1 and stop is not None:
            if self._pool is None:
                self._pool = single_core_threads(self._workers)
            return self._pool.submit(self._attempt, batch, raw, stop)
        done: Future[Outcome] = Future()
        done.set_result(self._attempt(batch, raw))
        return done

    def _settled(
        self, batch: list[Window[T]], outcome: Outcome, raw: torch.dtype | None
    ) -> Iterator[tuple[T, EncodedBatch | Exception]]:
        """Yield the results of a batch by owner; what did not fit or failed is attempted again in parts."""
        outcome = self._forward.arrived(outcome)
        if isinstance(outcome, Full) and outcome.is_of_library:
            forget_memory(self._device)  # libraries cannot ask for what torch keeps for later
            outcome = self._forward.arrived(self._attempt(batch, raw))
        if isinstance(outcome, Pending):
            self._size.fitted(len(batch))
            yield from self._dealt_back(batch, outcome)
            return
        owners = [list(windows) for _, windows in groupby(batch, lambda window: window.owner)]
        parts: Iterable[list[Window[T]]] = owners
        if isinstance(outcome, Full):
            forget_memory(self._device)
            if len(batch) == 1 or not self._oom_recovery:
                error = self._no_room(batch, outcome.reason)
                yield from ((windows[0].owner, error) for windows in owners)
                return
            self._size.full(len(batch))
            parts = self._smaller(batch)
        elif len(owners) == 1:
            yield batch[0].owner, outcome
            return
        del outcome
        for part in parts:  # if it failed: only one of its owners need be to blame
            yield from self._settled(part, self._attempt(part, raw), raw)

    def _smaller(self, batch: list[Window[T]]) -> Iterator[list[Window[T]]]:
        """Cut a batch into parts of the size that is the right one when each is asked for."""
        while batch:
            size = self._size.now
            yield batch[:size]
            batch = batch[size:]

    def _attempt(
        self, batch: list[Window[T]], raw: torch.dtype | None, stop: threading.Event | None = None
    ) -> Outcome:
        return self._forward.attempt([window.samples for window in batch], raw=raw, stop=stop)

    def _is_long(self, window: Window[T]) -> bool:
        frames = self._model.frames(len(window.samples))
        return 4 * frames * self._model.dim * self._layers > STREAM_BYTES

    def _streamed(
        self, window: Window[T], dtype: torch.dtype | None
    ) -> Iterator[tuple[T, EncodedBatch | EncodedState | Exception]]:
        """Encode one window, and give each state when it is computed: the next one is not until that is taken."""
        pooled: list[npt.NDArray[np.float32]] = []
        try:
            for state, mean in self._forward.states([window.samples]):
                pooled.append(mean.cpu().numpy())
                yield window.owner, EncodedState(state[0].to(dtype).cpu().numpy())
                del state
        except Exception as error:
            failure = self._forward.failure(error)
            yield window.owner, self._no_room([window], failure.reason) if isinstance(failure, Full) else failure
            return
        means = torch.from_numpy(np.stack(pooled, axis=1))
        yield from self._dealt_back([window], Pending(means, None, lambda: None))

    def _dealt_back(
        self, batch: list[Window[T]], pending: Pending
    ) -> Iterator[tuple[T, EncodedBatch | Exception]]:
        """Give the results of a batch to the owners of its windows."""
        # Copied, so that what the device writes to is free for the next batch while a track keeps its means.
        segments = np.array(pending.segments.numpy())
        frames = None if pending.raw is None else pending.raw.numpy().swapaxes(0, 1)
        rate, length, first = self._model.sample_rate, len(batch[0].samples), 0
        for owner, windows in groupby(batch, lambda window: window.owner):
            starts = [window.start for window in windows]
            part = slice(first, first := first + len(starts))
            if not np.isfinite(segments[part]).all():
                yield owner, self._not_finite()
                continue
            yield (
                owner,
                EncodedBatch(
                    starts=[start / rate for start in starts],
                    end=(starts[-1] + length) / rate,
                    segments=segments[part],
                    raw=None if frames is None else frames[part],
                ),
            )

    def _not_finite(self) -> ExtractionError:
        advice = "are its weights or the audio damaged?" if not self._in_half else "try `precision='fp32'`"
        return ExtractionError(f"{self._model.name} gives features that are not finite: {advice}")

    def _no_room(self, batch: list[Window[T]], reason: str) -> ExtractionError:
        advice = (
            "shorten `segment_duration` or choose a `device` with more memory"
            if len(batch) == 1
            else "choose a smaller `batch_size`, or leave out `oom_recovery=False`"
        )
        return ExtractionError(
            f"{self._device} is out of memory with {len(batch)} window(s) of {len(batch[0].samples)} samples "
            f"at a time: {advice} ({first_line(reason)})"
        )


_END = object()


def _is_full(running: tuple[Any, Future[Outcome]]) -> bool:
    """Tell whether a batch is known not to have fitted: nothing more is begun until that is settled."""
    future = running[1]
    return future.done() and isinstance(future.result(), Full)
