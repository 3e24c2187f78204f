"""Decode, downmix and resample ahead of the model, in threads and in bounded memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from featurestore.audio import AudioFile
from featurestore.errors import FeatureStoreError, SettingError
from featurestore.pipeline.decoder import Decoded, DecoderProcess, decode_track

AHEAD_MB = 64
"""Megabytes of decoded audio that wait for the model, of all tracks together: 11 minutes at 24 kHz."""

_LOOKING = 8
"""Threads that read headers; their time is waiting, on network file systems above all."""

_PATIENCE = 1.0
"""Seconds that the threads are waited for at the end."""


T = TypeVar("T")
R = TypeVar("R")


class _ClosedError(Exception):
    """Nobody wants this track's audio any more."""


class AudioBuffer:
    """Bounds the decoded audio that waits for the model, of all tracks together.

    Of at most `size` bytes; the track that the model waits for may have one block more, however full it is.

    Attributes
    ----------
    used : int
        Bytes that wait.
    waited : float
        Seconds that the model has waited for audio.
    """

    def __init__(self, size: int = AHEAD_MB * 10**6) -> None:
        self.size, self.used = size, 0
        self.waited = 0.0
        self.changed = threading.Condition()


class TrackAudio:
    """The audio of one track on its way from a thread to the model.

    It comes at `sample_rate` (Hz). Tracks that are decoded ahead share a `buffer`.

    Attributes
    ----------
    attributes : dict
        What identifies the audio, how loud it is, and warnings; complete when `blocks` is exhausted.
    seconds : float
        The length of what `blocks` has given so far.
    """

    def __init__(self, track: AudioFile, sample_rate: int, buffer: AudioBuffer | None = None) -> None:
        self.track = track
        self.attributes: dict[str, Any] = {}
        self.seconds = 0.0
        self._sample_rate = sample_rate
        self._items: deque[npt.NDArray[np.float32] | FeatureStoreError | None] = deque()
        self._buffer = buffer or AudioBuffer()
        self._changed = self._buffer.changed
        self._closed = self._is_awaited = False

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples of the track, shape (samples,), mono float32, in blocks.

        Raises
        ------
        AudioError
            If the file cannot be used; also when this shows only at its end.
        """
        while True:
            with self._changed:
                if not self._items:
                    self._is_awaited, began = True, time.monotonic()
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._items)
                    self._buffer.waited += time.monotonic() - began
                item = self._items.popleft()
                self._is_awaited = False
                self._buffer.used -= _bytes(item)
                self._changed.notify_all()
            if item is None:
                return
            if isinstance(item, FeatureStoreError):
                raise item
            self.seconds += len(item) / self._sample_rate
            yield item

    def close(self) -> None:
        """Drop what is left of the audio."""
        with self._changed:
            self._closed = True
            self._buffer.used -= sum(map(_bytes, self._items))
            self._items.clear()
            self._changed.notify_all()

    def produce(self, decoded: Callable[[Path, int], Generator[Decoded, None, None]]) -> None:
        """Decode the file into the queue; runs in a thread and raises nothing: errors go to `blocks`."""
        with contextlib.suppress(_ClosedError):
            try:
                if not self._closed:
                    with contextlib.closing(decoded(self.track.path, self._sample_rate)) as items:
                        for item in items:
                            if isinstance(item, dict):
                                self.attributes = item
                            else:
                                self._put(item)
                    self._put(None)
            except FeatureStoreError as error:
                self._put(error)

    def _put(self, item: npt.NDArray[np.float32] | FeatureStoreError | None) -> None:
        size, buffer = _bytes(item), self._buffer
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not size or self._is_awaited or buffer.used + size <= buffer.size
            )
            if self._closed:
                raise _ClosedError
            self._is_awaited = False
            buffer.used += size
            self._items.append(item)
            self._changed.notify_all()


def _bytes(item: object) -> int:
    return item.nbytes if isinstance(item, np.ndarray) else 0


@contextlib.contextmanager
def decode_ahead(audios: Iterable[TrackAudio], *, workers: int) -> Iterator[Iterator[TrackAudio]]:
    """Decode tracks, at most `workers` tracks ahead of the one that is being used.

    One worker is a thread of this process; of several, each thread waits for a process of its own.

    Yields an iterator of the `audios`, in their order, which are drawn as they are begun; each is closed when the
    next one is asked for.
    """
    source = iter(audios)
    under_way: deque[TrackAudio] = deque()
    decoders = [DecoderProcess() for _ in range(workers)] if workers > 1 else []
    idle = [decoder.decode for decoder in decoders] or [decode_track]
    with threads(workers, name="featurestore-decode") as submit:

        def produce(audio: TrackAudio) -> None:
            decode = idle.pop()
            audio.produce(decode)
            idle.append(decode)

        def start_next() -> None:
            for audio in source:
                under_way.append(audio)
                submit(partial(produce, audio))
                return

        def in_order() -> Iterator[TrackAudio]:
            for _ in range(workers):
                start_next()
            while under_way:
                start_next()
                yield under_way[0]
                under_way.popleft().close()

        try:
            yield in_order()
        finally:
            for audio in under_way:
                audio.close()
            for decoder in decoders:
                decoder.close()


@contextlib.contextmanager
def threads(count: int, *, name: str) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Start threads that run, in order, what is submitted, and never keep the process alive.

    What has not begun at the end of the block is dropped.

    Yields what takes a function without arguments that raises nothing.

    Raises
    ------
    SettingError
        If the machine does not start so many.
    """
    jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def work() -> None:
        while (job := jobs.get()) is not None:
            job()

    # Daemons, unlike those of concurrent.futures: one that hangs in a dead file system must not keep the
    # process alive.
    started: list[threading.Thread] = []
    try:
        for number in range(count):
            thread = threading.Thread(target=work, name=f"{name}-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise SettingError(
                    f"this machine does not start {count} threads, only {len(started)}: ask for fewer `workers`"
                ) from None
            started.append(thread)
        yield jobs.put
    finally:
        with contextlib.suppress(Empty):
            while True:
                jobs.get_nowait()
        for _ in started:
            jobs.put(None)
        for thread in started:
            thread.join(_PATIENCE)


def map_in_threads(look_at: Callable[[T], R], items: Sequence[T], notify: Callable[[int], None]) -> list[R]:
    """Apply a function that waits for a disk to all items, in their order.

    It is called in threads; its first error ends all, and is raised. `notify` is told how many items are done.
    """
    ready: SimpleQueue[tuple[int, Any, bool]] = SimpleQueue()

    def work(number: int) -> None:
        try:
            ready.put((number, look_at(items[number]), True))
        except BaseException as error:
            ready.put((number, error, False))

    found: dict[int, R] = {}
    with threads(min(_LOOKING, len(items)) or 1, name="featurestore-look") as submit:
        for number in range(len(items)):
            submit(partial(work, number))
        while len(found) < len(items):
            number, result, is_well = ready.get()
            if not is_well:
                raise result
            found[number] = result
            notify(len(found))
    return [found[number] for number in range(len(items))]
