"""From a file to mono samples at one rate, in blocks: a long file takes no more memory than a short one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.info import AudioInfo, check_duration, check_unchanged, format_error, quoted
from featurestore.audio.levels import Levels
from featurestore.audio.mpeg import before_tags, without_tags
from featurestore.audio.opening import OpenFile, load_av, opened
from featurestore.audio.resample import check_rate, resample_blocks
from featurestore.audio.timeline import HELD_BACK, Timeline
from featurestore.errors import AudioContentError

BLOCK_SECONDS = 5
_BLOCK_SAMPLES = 1 << 20
"""Samples of a block, of all channels together: 4 MiB."""

_LOUDEST = 1e10
"""Samples beyond are no sound, not even integers as floats; from 1e19 on their squares overflow in a model."""

_SEEKABLE = {"aiff", "au", "caf", "flac", "mp3", "ogg", "w64", "wav", "wv"}
"""Formats in which a sample is found by its time, exactly."""

Samples = npt.NDArray[np.float32]


def read_header(path: str | os.PathLike[str]) -> AudioInfo:
    """What the header of an audio file says; nothing is decoded.

    Parameters
    ----------
    path : path-like
        The file; its content, not its name, tells its format.

    Returns
    -------
    AudioInfo

    Raises
    ------
    AudioNotFoundError, AudioFormatError
        If there is no such file, or it cannot be decoded.
    AudioTooShortError
        If its header states less than `MIN_DURATION`.
    MissingDependencyError
        If the package that decodes it is not installed.
    """
    with opened(Path(path)) as file:
        check_duration(file.info, file.info.frames)
        return file.info


@dataclass
class Found:
    """What decoding has found out about a file; complete at its end.

    Attributes
    ----------
    samples : int
        Per channel, at the file's own rate.
    levels : Levels
        Of the mono signal, at the file's own rate.
    warnings : list of str
        What the user should know of a file that was read all the same.
    """

    levels: Levels = field(default_factory=Levels)
    warnings: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.levels.samples


def decode(
    path: str | os.PathLike[str], target_sr: int, *, info: AudioInfo | None = None, found: Found | None = None
) -> Iterator[Samples]:
    """Mono samples of a file, downmixed and resampled, block after block.

    Channels are averaged in float64 and rounded once. The blocks together equal the resampling of the whole
    file to 1e-6; memory does not depend on the file's length. Calls in several threads do not disturb each other.

    Parameters
    ----------
    path : path-like
        The file.
    target_sr : int
        Hz.
    info : AudioInfo, optional
        What `read_header` told of this file, if it was asked already.
    found : Found, optional
        Takes the length, the levels and the warnings.

    Yields
    ------
    ndarray of float32, shape (samples,)
        A few seconds each.

    Raises
    ------
    AudioError
        As `read_header`, and AudioFormatError if the file is damaged, truncated or written to meanwhile,
        AudioTooShortError if it has less than `MIN_DURATION`, AudioContentError if a sample is NaN, infinite
        or beyond 1e10.
    MissingDependencyError
        If a package that decoding or resampling needs does not import.
    SettingError
        If `target_sr` is no sample rate.
    """
    check_rate(target_sr, "target_sr")
    with opened(Path(path)) as file:
        if info is not None:
            check_unchanged(info)
        yield from resample_blocks(mono_blocks(file, found or Found()), file.info.sample_rate, int(target_sr))


def count_samples(path: str | os.PathLike[str]) -> tuple[int, int]:
    """How long a file is, exactly.

    Parameters
    ----------
    path : path-like
        The file. It is decoded, unless its format states the number of samples in its header as a fact.

    Returns
    -------
    samples : int
        Per channel, at the file's own rate: as many as `decode` gives at that rate.
    sample_rate : int
        Hz.

    Raises
    ------
    AudioError, MissingDependencyError
        As `decode`; what is damaged behind the header is found only where the file is decoded.
    """
    with opened(Path(path)) as file:
        check_duration(file.info, file.info.frames)
        stated = file.info.frames if file.info.exact else None
        samples = sum(map(len, mono_blocks(file, Found()))) if stated is None else stated
        return samples, file.info.sample_rate


def load_part(path: str | os.PathLike[str], start: int, samples: int) -> Samples:
    """Some mono samples of a file at its own rate, without decoding those before.

    Parameters
    ----------
    path : path-like
        The file.
    start, samples : int
        First sample, and how many.

    Returns
    -------
    ndarray of float32, shape (samples,)
        Fewer at the end of the file; none in formats in which a sample cannot be found by its time.

    Raises
    ------
    AudioError, MissingDependencyError
        As `decode`.
    """
    parts, wanted, at = [np.zeros(0, np.float32)], samples, None
    with opened(Path(path)) as file:
        info, stream = file.info, file.stream
        check_duration(info, info.frames)
        if info.format.split()[0] not in _SEEKABLE:
            return parts[0]
        unit, first = float(stream.time_base) * info.sample_rate, max(0, stream.start_time or 0)
        try:
            # From a little before, since decoders of lossy formats need some frames to get going.
            file.container.seek(first + int(max(0, start - info.sample_rate // 4) / unit), stream=stream)
            for frame in file.container.decode(stream):
                at = round(((frame.pts or first) - first) * unit) if at is None else at
                if at > start or not wanted:
                    break
                if (skipped := start - at) < frame.samples:
                    parts.append(_mean_of_channels(_samples(frame)[:, skipped : skipped + wanted]))
                    wanted -= len(parts[-1])
                    start += len(parts[-1])
                at += frame.samples
        except load_av().FFmpegError as error:
            raise format_error(info.path, f"cannot be read at {start:,} ({error.strerror})") from None
    return np.concatenate(parts)


def mono_blocks(file: OpenFile, found: Found) -> Iterator[Samples]:
    """Mono samples at the file's own rate, at least `MIN_DURATION` of them, all finite."""
    info = file.info
    check_duration(info, info.frames)
    for block in _blocks(file, found.warnings.append):
        mono = _mean_of_channels(block)
        with np.errstate(invalid="ignore"):
            is_sound = np.abs(mono) < _LOUDEST  # not so for NaN
        if not is_sound.all():
            first = found.samples + int(np.argmin(is_sound))
            raise AudioContentError(
                f"{quoted(info.path)} holds a sample that is NaN, infinite or beyond {_LOUDEST:g}, the first at "
                f"{first / info.sample_rate:.3f} s (sample {first:,}): write it again from its source"
            )
        found.levels.add(mono, block)
        yield mono
    check_unchanged(info)
    check_duration(info, found.samples)
    found.warnings += found.levels.warnings()


def _blocks(file: OpenFile, warn: Callable[[str], None]) -> Iterator[Samples]:
    """All samples of a file in order, [channel, sample], held against what it states."""
    info, new_fifo = file.info, load_av().AudioFifo
    length = max(1, min(BLOCK_SECONDS * info.sample_rate, _BLOCK_SAMPLES // info.channels))
    fifo, timeline = new_fifo(), Timeline(info, file.stream)
    for frame in _frames(file, timeline):
        skipped = timeline.add(frame)
        frame.pts = None
        try:
            fifo.write(frame)
        except ValueError:  # a recording with other channels was joined to the first
            if fifo.samples:
                yield _samples(fifo.read())
            fifo = new_fifo()
            fifo.write(frame)
        if skipped:
            fifo.read(skipped)
        while fifo.samples >= length + HELD_BACK:
            yield _samples(fifo.read(length))
    if rest := fifo.samples - timeline.excess():
        yield _samples(fifo.read(rest))
    timeline.end(warn)
    if file.sizes is not None and file.sizes.beyond:
        warn(
            f"{file.sizes.beyond:,} bytes of audio lie behind the end that its header states; they were decoded "
            "as well"
        )


def _frames(file: OpenFile, timeline: Timeline) -> Iterator[Any]:
    """The decoded frames."""
    info, av = file.info, load_av()
    end = before_tags(info.path) if file.container.format.name == "mp3" else info.size
    try:
        for packet in file.packets:
            if packet.size and (packet.pos or 0) >= end:
                continue
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                if not (rest := without_tags(bytes(packet))):
                    raise
                yield from file.stream.codec_context.decode(av.Packet(rest))
    except av.FFmpegError as error:
        rate = info.sample_rate
        stated = "" if info.frames is None else f" of the {info.frames / rate:.2f} s that its header states"
        where = f"after {timeline.done / rate:.2f} s{stated} ({error.strerror})"
        raise format_error(info.path, f"is truncated or damaged {where}; get it again or repair it") from None


def _samples(frame: Any) -> Samples:
    """Samples of a frame, [channel, sample], full scale being 1."""
    data: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype.kind == "f":
        return data.astype(np.float32, copy=False)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - np.float32(128)) / np.float32(128)
    return data.astype(np.float32) / np.float32(-float(np.iinfo(data.dtype).min))


def _mean_of_channels(block: Samples) -> Samples:
    """Mean of [channel, sample]."""
    if len(block) == 1:
        return np.ascontiguousarray(block[0])
    with np.errstate(invalid="ignore"):  # of infinities of both signs, and of signalling NaN; both are found later
        total = block[0].astype(np.float64)
        for channel in block[1:]:  # several times as fast as mean(axis=0) for few channels
            total += channel
        mono: Samples = (total / len(block)).astype(np.float32)
    return mono
