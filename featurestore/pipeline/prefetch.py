"""Decode, downmix and resample ahead of the model, in threads and in bounded memory."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio import AudioFile, Found, decode, file_sha256, read_header
from featurestore.audio.info import check_unchanged
from featurestore.errors import AudioFormatError, FeatureStoreError, SettingError

AHEAD_MB = 512
"""Megabytes of decoded audio that wait for the model, of all tracks together: 1.5 hours at 24 kHz."""

_PATIENCE = 1.0
"""Seconds that the threads are waited for at the end."""


class _ClosedError(Exception):
    """Nobody wants this track's audio any more."""


class AudioBuffer:
    """Bounds the decoded audio that waits for the model, of all tracks together.

    Parameters
    ----------
    size : int
        Bytes. The track that the model waits for may have one block more, however full the buffer is.
    """

    def __init__(self, size: int = AHEAD_MB * 10**6) -> None:
        self.size, self.used = size, 0
        self.changed = threading.Condition()


class TrackAudio:
    """The audio of one track on its way from a thread to the model.

    Parameters
    ----------
    track : AudioFile
        The track and its file.
    sample_rate : int
        The rate that the model hears, Hz.
    buffer : AudioBuffer, optional
        Shared by the tracks that are decoded ahead.

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
                    self._is_awaited = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._items)
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

    def produce(self) -> None:
        """Decode the file into the queue; runs in a thread and raises nothing: errors go to `blocks`."""
        try:
            if not self._closed:
                self._decode()
        except _ClosedError:
            pass
        except FeatureStoreError as error:
            self._fail(error)
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
            wrapped = AudioFormatError(f"{self.track.path} cannot be read: {reason}")
            wrapped.__cause__ = error
            self._fail(wrapped)

    def _fail(self, error: FeatureStoreError) -> None:
        with contextlib.suppress(_ClosedError):
            self._put(error)

    def _decode(self) -> None:
        path = self.track.path
        info, found = read_header(path), Found()
        for block in decode(path, self._sample_rate, info=info, found=found):
            self._put(block)
        sha256 = file_sha256(path)
        check_unchanged(info)
        self.attributes = {
            "audio": {
                "path": str(path),
                "size": info.size,
                "mtime_ns": info.mtime_ns,
                "sha256": sha256,
                "duration": found.samples / info.sample_rate,
                "samples": found.samples,
                "sample_rate": info.sample_rate,
                "channels": info.channels,
                "format": info.format,
            },
            "levels": found.levels.to_dict(),
            "warnings": found.warnings,
            "decoder": info.decoder,
        }
        self._put(None)

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
    """Decode tracks in threads, at most `workers` tracks ahead of the one that is being used.

    Parameters
    ----------
    audios : iterable of TrackAudio
        What to decode, in this order; drawn as it is begun.
    workers : int
        The number of threads, at least 1.

    Yields
    ------
    iterator of TrackAudio
        In the order of `audios`; each is closed when the next one is asked for.
    """
    source = iter(audios)
    under_way: deque[TrackAudio] = deque()
    with threads(workers, name="featurestore-decode") as submit:

        def start_next() -> None:
            for audio in source:
                under_way.append(audio)
                submit(audio.produce)
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


@contextlib.contextmanager
def threads(count: int, *, name: str) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Start threads that run, in order, what is submitted, and never keep the process alive.

    What has not begun at the end of the block is dropped.

    Parameters
    ----------
    count : int
        The number of threads, at least 1.
    name : str
        The name of the threads in debuggers.

    Yields
    ------
    callable
        Takes a function without arguments that raises nothing.

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
