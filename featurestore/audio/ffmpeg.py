"""Samples of audio files by FFmpeg's libraries (PyAV), one block after the other, and missing nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.containers import read_sizes
from featurestore.audio.info import AudioInfo, quoted
from featurestore.audio.mpeg import before_tags, without_tags
from featurestore.audio.opening import load_av, opened
from featurestore.audio.timeline import HELD_BACK, Timeline, check_last_page
from featurestore.errors import AudioFormatError

_SEEKABLE = {"aiff", "au", "caf", "flac", "mp3", "ogg", "w64", "wav", "wv"}
"""Formats in which a sample is found by its time, exactly."""

Channels = npt.NDArray[np.float32]


def read_blocks(info: AudioInfo, block_frames: int, warn: Callable[[str], None]) -> Iterator[Channels]:
    """All samples of a file, in order.

    Parameters
    ----------
    info : AudioInfo
        The file.
    block_frames : int
        Samples per channel of a block; the last one, and one before the channels change, may be shorter.
    warn : callable
        Takes what the user should know of a file that is read all the same.

    Yields
    ------
    ndarray of float32, shape (channels, frames)
        In [-1, 1], but for floats that go beyond.

    Raises
    ------
    AudioFormatError
        If the file is damaged, lacks audio in its middle, or ends before the length that its header states.
    """
    fifo = load_av().AudioFifo()
    sizes = read_sizes(info.path)
    with opened(info.path, sizes) as (container, stream):
        timeline = Timeline(info, stream, container.format.name)
        for frame in _decoded(info, container, stream, timeline):
            skipped = timeline.add(frame)
            frame.pts = None
            try:
                fifo.write(frame)
            except ValueError:  # a recording with other channels was joined to the first
                yield from _drained(fifo, block_frames, fifo.samples)
                fifo = load_av().AudioFifo()
                fifo.write(frame)
            if skipped:
                fifo.read(skipped)
            while fifo.samples >= block_frames + HELD_BACK:
                yield _samples(fifo.read(block_frames))
        yield from _drained(fifo, block_frames, fifo.samples - timeline.excess())
        timeline.end(warn)
    if sizes is not None and sizes.beyond:
        warn(
            f"{sizes.beyond:,} bytes of audio lie behind the end that its header states; they were decoded as well"
        )
    if container.format.name == "ogg":
        check_last_page(info, timeline, warn)


def read_part(info: AudioInfo, start: int, samples: int) -> Channels:
    """Samples of a file from `start` on; fewer at its end, none where the file cannot be read from there.

    Parameters
    ----------
    info : AudioInfo
        The file.
    start, samples : int
        Per channel, at the file's own rate.

    Returns
    -------
    ndarray of float32, shape (channels, samples)

    Raises
    ------
    AudioFormatError
        If the file cannot be decoded.
    """
    parts, wanted, at = [], samples, None
    if info.format.split()[0] not in _SEEKABLE:
        return np.zeros((info.channels, 0), np.float32)
    with opened(info.path, read_sizes(info.path)) as (container, stream):
        unit, first = float(stream.time_base) * info.sample_rate, max(0, stream.start_time or 0)
        try:
            # From a little before, since decoders of lossy formats need some frames to get going.
            container.seek(first + int(max(0, start - info.sample_rate // 4) / unit), stream=stream)
            for frame in container.decode(stream):
                if at is None:
                    at = round(((frame.pts or first) - first) * unit)
                if at > start:
                    break
                if (skipped := start - at) < frame.samples:
                    parts.append(_samples(frame)[:, skipped : skipped + wanted])
                    wanted -= parts[-1].shape[1]
                    start += parts[-1].shape[1]
                at += frame.samples
                if not wanted:
                    break
        except load_av().FFmpegError as error:
            raise AudioFormatError(f"{quoted(info.path)} cannot be read at {start:,} ({error.strerror})") from None
    return np.concatenate(parts, axis=1) if parts else np.zeros((info.channels, 0), np.float32)


def _decoded(info: AudioInfo, container: Any, stream: Any, timeline: Timeline) -> Iterator[Any]:
    """The decoded frames."""
    av = load_av()
    end = before_tags(info.path) if container.format.name == "mp3" else info.size
    try:
        for packet in container.demux(stream):
            if packet.size and (packet.pos or 0) >= end:
                continue
            timeline.page = packet.pos or timeline.page
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                if not (rest := without_tags(bytes(packet))):
                    raise
                yield from stream.codec_context.decode(av.Packet(rest))
    except av.FFmpegError as error:
        rate = info.sample_rate
        stated = "" if info.frames is None else f" of the {info.frames / rate:.2f} s that its header states"
        raise AudioFormatError(
            f"{quoted(info.path)} is truncated or damaged after {timeline.done / rate:.2f} s{stated} "
            f"({error.strerror}); get it again or repair it"
        ) from None


def _drained(fifo: Any, block_frames: int, samples: int) -> Iterator[Channels]:
    """The next so many samples, in blocks."""
    while samples > 0:
        yield _samples(fifo.read(min(block_frames, samples)))
        samples -= block_frames


def _samples(frame: Any) -> Channels:
    """Samples of a frame, [channel, frame], full scale being 1."""
    data: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype.kind == "f":
        return data.astype(np.float32, copy=False)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - np.float32(128)) / np.float32(128)
    return data.astype(np.float32) / np.float32(-float(np.iinfo(data.dtype).min))
