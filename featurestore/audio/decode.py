"""From a file to mono samples at one rate, in blocks: a long file takes no more memory than a short one."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.info import AudioInfo, check_duration, check_unchanged, format_error, quoted
from featurestore.audio.opening import OpenFile, load_av, opened
from featurestore.audio.resample import check_rate, resample_blocks
from featurestore.audio.timeline import HELD_BACK, Timeline
from featurestore.errors import AudioContentError

BLOCK_SECONDS = 5
_BLOCK_SAMPLES = 1 << 20
"""Samples of a block, of all channels together: 4 MiB."""

_LOUDEST = 1e10
"""Samples beyond are no sound, not even integers as floats; from 1e19 on their squares overflow in a model."""

_FULL_SCALE = 0.9999
"""Magnitude from which a sample counts as clipped: the largest of 16 bits is 0.99997."""

_MOST_CLIPPED = 0.01
_SILENCE = 1e-5
"""Root mean square, -100 dB of full scale, below which a track is silent; that of 16 bits of noise is 9e-6."""

_CANCELLED = 1e-3
"""Power of a mono mix, relative to that of its channels, below which they cancel each other out."""

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


class Found:
    """What decoding has found out about a file, gathered block by block; complete at its end.

    Attributes
    ----------
    info : AudioInfo
        What its header says; there from the first block on.
    samples : int
        Per channel, at the file's own rate.
    warnings : list of str
        What the user should know of a file that was read all the same.
    """

    info: AudioInfo

    def __init__(self) -> None:
        self.samples = 0
        self.warnings: list[str] = []
        self._peak = self._power = self._channels_power = 0.0
        self._clipped = 0

    def add(self, mono: Samples, channels: Samples, peak: float) -> None:
        """Take the next block, finite samples of shape (samples,) that are the mean of (channels, samples).

        `peak` is the largest magnitude of the mean.
        """
        power = float(np.dot(mono, mono))
        self.samples += len(mono)
        self._power += power
        if len(channels) > 1:
            power = sum(float(np.dot(x, x)) for x in channels) / len(channels)
        self._channels_power += power
        if peak >= _FULL_SCALE:
            self._clipped += int(np.count_nonzero(np.abs(mono) >= _FULL_SCALE))
        self._peak = max(self._peak, peak)

    def levels(self) -> dict[str, float]:
        """Of the mono signal, as a track keeps them: ``rms``, ``peak``, and ``clipped``, a share of samples."""
        samples = max(1, self.samples)
        return {"rms": math.sqrt(self._power / samples), "peak": self._peak, "clipped": self._clipped / samples}

    def warn_of_levels(self) -> None:
        """Add what is wrong with a track of these levels to the warnings, a sentence each."""
        levels = self.levels()
        cancelled = self._power < _CANCELLED * self._channels_power
        if cancelled and math.sqrt(self._channels_power / max(1, self.samples)) >= _SILENCE:
            self.warnings.append(
                "its channels cancel each other out: their mean, of which features are made, is all but silent"
            )
        elif levels["rms"] < _SILENCE:
            self.warnings.append(f"it is silent (root mean square {levels['rms']:.1e})")
        if levels["clipped"] > _MOST_CLIPPED:
            self.warnings.append(f"{100 * levels['clipped']:.1f} % of its samples are clipped")


def decode(path: str | os.PathLike[str], target_sr: int, *, found: Found | None = None) -> Iterator[Samples]:
    """Mono samples of a file, downmixed and resampled, block after block.

    Channels are averaged in float64 and rounded once. The blocks together equal the resampling of the whole
    file to 1e-6; memory does not depend on the file's length. Calls in several threads do not disturb each other.

    Parameters
    ----------
    path : path-like
        The file.
    target_sr : int
        Hz.
    found : Found, optional
        Takes what the header says, the length, the levels and the warnings.

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
        yield from resample_blocks(mono_blocks(file, found or Found()), file.info.sample_rate, int(target_sr))


def mono_blocks(file: OpenFile, found: Found) -> Iterator[Samples]:
    """Mono samples at the file's own rate, at least `MIN_DURATION` of them, all finite."""
    info = found.info = file.info
    check_duration(info, info.frames)
    for block in _blocks(file, found.warnings.append):
        mono = mean_of_channels(block)
        peak = float(max(mono.max(initial=0), -mono.min(initial=0)))
        if not peak < _LOUDEST:  # nor is NaN
            with np.errstate(invalid="ignore"):
                first = found.samples + int(np.argmin(np.abs(mono) < _LOUDEST))
            raise AudioContentError(
                f"{quoted(info.path)} holds a sample that is NaN, infinite or beyond {_LOUDEST:g}, the first at "
                f"{first / info.sample_rate:.3f} s (sample {first:,}): write it again from its source"
            )
        found.add(mono, block, peak)
        yield mono
    check_unchanged(info)
    check_duration(info, found.samples)
    found.warn_of_levels()


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
                yield samples_of(fifo.read())
            fifo = new_fifo()
            fifo.write(frame)
        if skipped:
            fifo.read(skipped)
        while fifo.samples >= length + HELD_BACK:
            yield samples_of(fifo.read(length))
    if rest := fifo.samples - timeline.excess():
        yield samples_of(fifo.read(rest))
    timeline.end(warn)
    if file.beyond:
        warn(
            f"{file.beyond:,} bytes of audio lie behind the end that its header states; they were decoded as well"
        )


def _frames(file: OpenFile, timeline: Timeline) -> Iterator[Any]:
    """The decoded frames."""
    info, av = file.info, load_av()
    end = _before_tags(info.path) if info.format.startswith("mp3 ") else info.size
    try:
        for packet in file.packets:
            if packet.size and (packet.pos or 0) >= end:
                continue
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                if not (rest := _without_tags(bytes(packet))):
                    raise
                yield from file.stream.codec_context.decode(av.Packet(rest))
    except av.FFmpegError as error:
        rate = info.sample_rate
        stated = "" if info.frames is None else f" of the {info.frames / rate:.2f} s that its header states"
        where = f"after {timeline.done / rate:.2f} s{stated} ({error.strerror})"
        raise format_error(info.path, f"is truncated or damaged {where}; get it again or repair it") from None


def _before_tags(path: Path) -> int:
    """Bytes before the ID3v1, APE and Lyrics3 tags at the end of an MP3 file, which FFmpeg takes for frames."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while True:
            start = max(0, end - 160)
            file.seek(start)
            tail = file.read(end - start)
            if tail[-128:-125] == b"TAG":
                end -= 128
            elif tail[-32:-24] == b"APETAGEX":
                size, _, flags = struct.unpack("<III", tail[-20:-8])
                # A size has the footer in it; of an impossible one only the footer is left out.
                end -= size + (32 if flags >> 31 else 0) if 32 <= size <= end else 32
            elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
                end -= int(tail[-15:-9]) + 15
            else:
                return max(end, 0)


def _without_tags(data: bytes) -> bytes:
    """What follows ID3v2 tags at the start of a packet, as where MP3 files were joined; else nothing."""
    size = 0
    while data[size : size + 3] == b"ID3":
        sizes = zip(data[size + 6 : size + 10], (21, 14, 7, 0), strict=False)
        size += 10 + sum((byte & 0x7F) << shift for byte, shift in sizes)
    return data[size:] if size else b""


def samples_of(frame: Any) -> Samples:
    """Samples of a frame, [channel, sample], full scale being 1."""
    data: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype.kind == "f":
        return data.astype(np.float32, copy=False)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - np.float32(128)) / np.float32(128)
    samples = data.astype(np.float32)
    samples *= np.float32(-1 / float(np.iinfo(data.dtype).min))
    return samples


def mean_of_channels(block: Samples) -> Samples:
    """Mean of [channel, sample]."""
    if len(block) == 1:
        return np.ascontiguousarray(block[0])
    # What is no sound is found later: infinities of both signs, signalling NaN, sums that are too large.
    with np.errstate(invalid="ignore", over="ignore"):
        if len(block) == 2:  # rounded once as well: to halve a number is exact
            mono: Samples = block[0] + block[1]
            mono *= np.float32(0.5)
            return mono
        total = block[0].astype(np.float64)
        for channel in block[1:]:  # several times as fast as mean(axis=0) for few channels
            total += channel
        mean: Samples = (total / len(block)).astype(np.float32)
    return mean
