"""Reading audio files with FFmpeg's libraries (PyAV), one block after the other, and missing nothing.

FFmpeg decodes what it can and leaves out the rest without a word, but tells where in time each frame lies. A jump
forward in time is audio that is lost, a jump back begins another recording that was joined to the first, and an
end before the stated one is that of a truncated file.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.containers import Patched, Sizes, read_sizes
from featurestore.audio.info import AudioInfo, quoted
from featurestore.errors import AudioFormatError, MissingDependencyError

_log = logging.getLogger("featurestore")

_NAMES = """
3gp 8svx aac ac3 aif aifc aiff amr ape au bwf caf dsf dts eac3 flac iff ircam m4a m4b mka mkv mov mp1 mp2 mp3 mp4
mpc nist oga ogg opus rf64 sf snd sph spx svx tak tta voc w64 wav wave weba webm wma wv
"""
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""Suffixes of the files that are looked for in folders, lower case."""

_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,caf,dsf,dts,eac3,flac,iff,ircam,matroska,mov,mp3,mpc,mpc8,nistsphere,ogg,tak,tta,"
    "voc,w64,wav,wv"
)
"""What may read a file: containers of sound. Others, such as playlists, name files and addresses."""

_EXACT = {"ape", "flac", "tta", "wv"}
"""Lossless formats that count samples."""

_STATED = {"asf", "dsf", "matroska", "mov", "mpc", "mpc8", "nistsphere", "tak"}
"""Other formats that state their length; that of the rest is guessed, or the time of the last page."""

_SEEKABLE = {"aiff", "au", "caf", "flac", "mp3", "ogg", "w64", "wav", "wv"}
"""Formats in which a sample is found by its time, exactly."""

LOST = 0.1
"""Seconds of audio that a file may lack, with a warning: about a frame of any codec."""

_JITTER = 0.005
"""Seconds by which the time of a frame may be off."""

_SETTLED = 16
"""Frames after which a time counts: those of Vorbis jump by some ms where its blocks change, and back."""

_LONGEST_MPEG_FRAME = 2_881
_TAIL = 4_096
"""Bytes that may follow those that an MP3 file counts, or the last page of an Ogg file."""

_HELD_BACK = 1 << 14
"""Samples, two of the longest blocks of Vorbis, that wait for the end: the last page tells how many count."""

Channels = npt.NDArray[np.float32]


@cache
def _av() -> Any:
    try:
        import av
        import av.logging
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"reading audio needs the package av, which does not import ({error}): "
            'pip install "featurestore[extract]"'
        ) from error
    av.logging.set_level(None)  # what matters becomes an error or a warning that names the file
    return av


def read_header(path: Path, status: os.stat_result) -> AudioInfo:
    """Header of a file.

    Parameters
    ----------
    path : Path
        A regular file.
    status : os.stat_result
        Of the file.

    Raises
    ------
    AudioFormatError
        If FFmpeg cannot read it, it holds no audio, or it holds less than its header states.
    MissingDependencyError
        If PyAV is not installed.
    """
    av = _av()
    sizes = read_sizes(path)
    with _opened(path, sizes) as (container, stream):
        frames, seconds, exact = _length(path, status.st_size, sizes, container, stream)
        return AudioInfo(
            path=path,
            format=f"{container.format.name.split(',')[0]} {stream.codec_context.name}",
            sample_rate=stream.rate,
            channels=stream.channels,
            frames=frames,
            duration=seconds,
            exact=exact,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            decoder=f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})",
        )


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
    fifo = _av().AudioFifo()
    sizes = read_sizes(info.path)
    with _opened(info.path, sizes) as (container, stream):
        timeline = _Timeline(info, stream, container.format.name)
        for frame in _decoded(info, container, stream, timeline):
            skipped = timeline.add(frame)
            frame.pts = None
            try:
                fifo.write(frame)
            except ValueError:  # a recording with other channels was joined to the first
                yield from _drained(fifo, block_frames, fifo.samples)
                fifo = _av().AudioFifo()
                fifo.write(frame)
            if skipped:
                fifo.read(skipped)
            while fifo.samples >= block_frames + _HELD_BACK:
                yield _samples(fifo.read(block_frames))
        yield from _drained(fifo, block_frames, fifo.samples - timeline.excess())
        timeline.end(warn)
    if sizes is not None and sizes.beyond:
        warn(
            f"{sizes.beyond:,} bytes of audio lie behind the end that its header states; they were decoded as well"
        )
    if container.format.name == "ogg":
        _check_last_page(info, timeline, warn)


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
    with _opened(info.path, read_sizes(info.path)) as (container, stream):
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
        except _av().FFmpegError as error:
            raise AudioFormatError(f"{quoted(info.path)} cannot be read at {start:,} ({error.strerror})") from None
    return np.concatenate(parts, axis=1) if parts else np.zeros((info.channels, 0), np.float32)


class _Timeline:
    """Holds the decoded samples against the times and the length that a file states.

    Parameters
    ----------
    info : AudioInfo
    stream : av.AudioStream
    container : str
        FFmpeg's name of it.
    """

    def __init__(self, info: AudioInfo, stream: Any, container: str) -> None:
        self._info, self._rate, self._unit = info, info.sample_rate, float(stream.time_base)
        self._is_ogg = container == "ogg"
        self._is_timed = container.split(",")[0] in ("asf", "matroska", "mov")
        self._tolerance = _JITTER if container in ("ogg", "flac") else LOST
        self.done = 0
        self.page = 0
        """Where the page of the last packet begins, bytes."""
        self._start: float | None = None
        """Time of the first sample, of this recording if several were joined, less that of all before, seconds."""
        self._end = 0
        """Samples to the last page of an Ogg file that is one recording; 0 if that is not known."""
        if self._is_ogg and stream.duration:
            self._end = round((stream.duration + min(0, stream.start_time or 0)) * self._unit * self._rate)
        self._missing = 0.0
        self._late = self._longest = 0

    def add(self, frame: Any) -> int:
        """Take the next frame; how many of its first samples are no part of the recording."""
        if frame.sample_rate != self._rate:
            raise AudioFormatError(
                f"{quoted(self._info.path)} changes its rate after {self.done / self._rate:.2f} s, from "
                f"{self._rate:,} to {frame.sample_rate:,} Hz: split it, or convert it to one rate"
            )
        samples, skipped = frame.samples, 0
        if (time := frame.pts) is not None:
            offset = time * self._unit - self.done / self._rate
            if self._start is None:
                if self._is_ogg and offset < 0:  # what begins before 0 is dropped
                    skipped, offset = min(samples, round(-offset * self._rate)), 0.0
                self._start = offset
            elif offset < self._start - 10 * _JITTER:  # another recording
                self._start, self._end = offset, 0
            self._missing = offset - self._start
            self._late = self._late + 1 if self._missing > self._tolerance else 0
            if self._late > _SETTLED:
                raise self._gap()
        self._longest = max(self._longest, samples)
        self.done += samples - skipped
        return skipped

    def excess(self) -> int:
        """Decoded samples that are no part of the recording: the last block of Vorbis is cut by its page."""
        excess = self.done - self._end if self._end else 0
        if not 0 < excess < _HELD_BACK:
            return 0
        self.done -= excess
        return excess

    def end(self, warn: Callable[[str], None]) -> None:
        """Hold all of it against the stated length."""
        info, rate, longest = self._info, self._rate, self._longest / self._rate
        if self._late and self._missing > max(self._tolerance, longest):
            raise self._gap()
        if self._is_timed and self._missing > 3 * _JITTER and not self._late:
            warn(f"by the times that it states, {self._missing:.3f} s are missing in the middle")
        lacking = (info.frames or self.done) - self.done
        found = f"{self.done / rate:.2f} s were decoded of the {(info.frames or 0) / rate:.2f} s that it states"
        if lacking > max(LOST, longest) * rate:
            raise AudioFormatError(
                f"{quoted(info.path)} is truncated or damaged: {found}; get it again or repair it"
            )
        if lacking > (0 if info.exact else 2 * self._longest) or -lacking > max(LOST, 2 * longest) * rate:
            warn(f"{found} ({abs(lacking):,} samples {'fewer' if lacking > 0 else 'more'})")

    def lacks(self, time: int) -> bool:
        """Whether the audio goes on to this time, which was not decoded."""
        return time * self._unit - (self._start or 0.0) - self.done / self._rate > LOST

    def _gap(self) -> AudioFormatError:
        at = self.done / self._rate - self._late * self._longest / self._rate
        return AudioFormatError(
            f"{quoted(self._info.path)} is damaged: {self._missing:.2f} s of audio are missing about "
            f"{max(0.0, at):.1f} s from its start; get it again or repair it"
        )


def _decoded(info: AudioInfo, container: Any, stream: Any, timeline: _Timeline) -> Iterator[Any]:
    """The decoded frames."""
    av = _av()
    end = _before_tags(info.path) if container.format.name == "mp3" else info.size
    try:
        for packet in container.demux(stream):
            if packet.size and (packet.pos or 0) >= end:
                continue
            timeline.page = packet.pos or timeline.page
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                if not (rest := _without_tag(packet)):
                    raise
                yield from stream.codec_context.decode(av.Packet(rest))
    except av.FFmpegError as error:
        rate = info.sample_rate
        stated = "" if info.frames is None else f" of the {info.frames / rate:.2f} s that its header states"
        raise AudioFormatError(
            f"{quoted(info.path)} is truncated or damaged after {timeline.done / rate:.2f} s{stated} "
            f"({error.strerror}); get it again or repair it"
        ) from None


def _without_tag(packet: Any) -> bytes:
    """What follows ID3v2 tags at the start of a packet, as where MP3 files were joined; else nothing."""
    data = bytes(packet)
    size = 0
    while data[size : size + 3] == b"ID3":
        sizes = zip(data[size + 6 : size + 10], (21, 14, 7, 0), strict=False)
        size += 10 + sum((byte & 0x7F) << shift for byte, shift in sizes)
    return data[size:] if size else b""


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


def _length(
    info_path: Path, size: int, sizes: Sizes | None, container: Any, stream: Any
) -> tuple[int | None, float | None, bool]:
    """Stated samples, their seconds or a guess, and whether the number is exact."""
    name, rate = container.format.name.split(",")[0], stream.rate
    seconds = float(stream.duration * stream.time_base) if stream.duration else None
    if seconds is None and container.duration and not any(s.type == "video" for s in container.streams):
        seconds = container.duration / 1e6
    first = next(container.demux(stream), None)
    if sizes is not None and sizes.held <= 0:
        return 0, 0.0, True
    if sizes is not None and first is not None and first.size and (decoded := first.decode()):
        return _of_sizes(info_path, sizes, stream, first.size / decoded[0].samples, seconds)
    if seconds is None or first is None or first.pos is None:
        return None, seconds, False
    frames = round(seconds * rate)
    if name in _EXACT:  # of joined files the count is that of the first
        fits = frames * stream.channels * stream.format.bytes > 0.9 * (size - first.pos)
        return frames if fits else None, seconds, fits
    counted = name in _STATED or (name == "mp3" and _counts_frames(info_path, size, first.pos))
    return frames if counted else None, seconds, False


def _of_sizes(
    path: Path, sizes: Sizes, stream: Any, sample_bytes: float, seconds: float | None
) -> tuple[int | None, float | None, bool]:
    per_second = sample_bytes * stream.rate
    if sizes.stated - sizes.held > LOST * per_second:
        raise AudioFormatError(
            f"{quoted(path)} is truncated: it holds {sizes.held / per_second:.2f} s of audio, {sizes.held:,} of "
            f"the {sizes.stated:,} bytes that its header states; get it again from where it came from"
        )
    if not stream.codec_context.name.startswith("pcm_"):
        return None, seconds, False
    frames = int(sizes.stated / sample_bytes)
    return frames, frames / stream.rate, True


def _counts_frames(path: Path, size: int, first: int) -> bool:
    """Whether a Xing or Info header before the first frame counts the frames of this file, not of a part of it.

    Bit 0 of its flags tells that it has the number of frames, bit 1 that of bytes, which follows.
    """
    with path.open("rb") as file:
        file.seek(max(0, first - _LONGEST_MPEG_FRAME))
        before = file.read(min(first, _LONGEST_MPEG_FRAME))
    at = max(before.rfind(b"Xing"), before.rfind(b"Info"))
    if at < 0 or len(before) < at + 16:
        return False
    flags, frames, count = struct.unpack(">III", before[at + 4 : at + 16])
    if not flags & 1 or size - first > frames * _LONGEST_MPEG_FRAME / 2:
        return False
    return not flags & 2 or size - first - count < _TAIL


def _check_last_page(info: AudioInfo, timeline: _Timeline, warn: Callable[[str], None]) -> None:
    """Walk the pages of an Ogg file from that of the last packet (RFC 3533, section 6): they reach to the end."""
    at, last, flags, head = timeline.page, 0, 0, b""
    with info.path.open("rb") as file:
        while at < info.size:
            file.seek(at)
            head = file.read(27 + 255)
            end = at + 27 + head[26] + sum(head[27 : 27 + head[26]]) if len(head) > 27 else at
            if head[:4] != b"OggS" or not at < end <= info.size:
                break
            flags, last = head[5], max(last, int.from_bytes(head[6:14], "little", signed=True))
            at, head = end, b""
    if head[:4] == b"OggS" or info.size - at > _TAIL or timeline.lacks(last):
        raise AudioFormatError(
            f"{quoted(info.path)} is truncated or damaged at its end, after "
            f"{timeline.done / info.sample_rate:.2f} s: get it again"
        )
    if not flags & 4:
        warn("its last page is not marked as the end: if it was cut there, the rest is missing")


@contextmanager
def _opened(path: Path, sizes: Sizes | None) -> Iterator[tuple[Any, Any]]:
    """The file and its best stream of audio."""
    av = _av()
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    if sizes is not None:
        options["probesize"] = "32768"  # megabytes are searched for DTS otherwise
    with ExitStack() as stack:
        source: Any = os.path.abspath(path)  # a relative name with a colon could be an address
        if sizes is not None and sizes.patches:
            source = stack.enter_context(Patched(path, sizes.patches))
        try:
            container = stack.enter_context(av.open(source, options=options, metadata_errors="ignore"))
        except av.FFmpegError as error:
            raise AudioFormatError(
                f"{quoted(path)} is in no format that is read, or its header is damaged or was never finished "
                f"({error.strerror}): get it again, or convert it to .flac or .wav"
            ) from None
        stream = container.streams.best("audio")
        if stream is None:
            raise AudioFormatError(f"{quoted(path)} is in no format that is read: it holds no audio that decodes")
        if len(container.streams.audio) > 1:
            _log.info(
                "%s has %d streams of audio: number %d is read", path, len(container.streams.audio), stream.index
            )
        if not stream.rate or not stream.channels:
            raise AudioFormatError(
                f"{quoted(path)} does not state its sample rate or channels: convert it to .flac or .wav"
            )
        if (codec := stream.codec_context.name) in ("pcm_f24le", "pcm_f16le"):  # what Cool Edit 96 meant by it
            raise AudioFormatError(
                f"{quoted(path)} holds samples of an unknown kind ({codec}): convert it to .flac"
            )
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        if container.format.name == "caf" and codec == "alac":  # FFmpeg 8.1 shortens the last packet twice
            stream.codec_context.options |= {"flags2": "skip_manual"}
        yield container, stream
