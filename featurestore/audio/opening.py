"""Opening a file with FFmpeg's libraries (PyAV), and what its header says of its length."""

from __future__ import annotations

import itertools
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.audio.containers import Patched, Sizes, read_sizes
from featurestore.audio.impostors import HEAD_BYTES, what_it_is
from featurestore.audio.info import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, AudioInfo, format_error, open_file
from featurestore.errors import MissingDependencyError

LOST = 0.1
"""Seconds of audio that a file may lack, with a warning: about a frame of any codec."""

_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,caf,dsf,dts,eac3,flac,iff,ircam,matroska,mov,mp3,mpc,mpc8,nistsphere,ogg,tak,tta,"
    "voc,w64,wav,wv"
)
"""What may read a file: containers of sound. Others, such as playlists, name files and addresses."""

_EXACT = {"ape", "flac", "tta", "wv"}
"""Lossless formats that count samples."""

_STATED = {"asf", "dsf", "matroska", "mov", "mpc", "mpc8", "nistsphere", "tak"}
"""Other formats that state their length; that of the rest is guessed, or the time of the last page."""

_SAMPLES_PER_BYTE = 16_384
"""More samples than any codec puts in a byte: silence in FLAC has about 6,600."""

_LONGEST_FRAME = 2_881
"""Bytes of a frame of MPEG audio."""

_BEHIND_MP3 = 4_096
"""Bytes that may follow those that a file counts."""

_log = logging.getLogger("featurestore")


class OpenFile(NamedTuple):
    """An open audio file: its header, FFmpeg's best stream and its packets, and bytes behind its stated end."""

    info: AudioInfo
    stream: Any
    packets: Iterator[Any]
    beyond: int


@cache
def load_av() -> Any:
    """The module `av`, which does not write to stderr; MissingDependencyError if it does not import."""
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


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    """Open a file that is there, is audio that FFmpeg reads, has a possible header, and holds what it states."""
    av = load_av()
    with open_file(path) as file:
        status = os.fstat(file.fileno())
        if (impostor := what_it_is(file.read(HEAD_BYTES))) is not None:
            raise format_error(path, f"is {impostor}")
        sizes = read_sizes(path, file)
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    if sizes is not None:
        options["probesize"] = "32768"  # megabytes are searched for DTS otherwise
    with ExitStack() as stack:
        source: Any = os.path.abspath(path)  # a relative name with a colon could be an address
        if sizes is not None and sizes.patches:
            source = stack.enter_context(Patched(path, sizes.patches))
        try:
            container = stack.enter_context(av.open(source, options=options, metadata_errors="ignore"))
            stream = container.streams.best("audio")
            if stream is None or stream.codec_context is None:
                raise format_error(path, "is in no format that is read: it holds no audio that decodes")
            packets = container.demux(stream)
            first = next(packets)  # an empty one is the end
        except av.FFmpegError as error:
            raise format_error(
                path,
                "is in no format that is read, or its header is damaged or was never finished "
                f"({error.strerror}): get it again, or convert it to .flac or .wav",
            ) from None
        name, codec, rate = container.format.name.split(",")[0], stream.codec_context.name, stream.rate
        if len(container.streams.audio) > 1:
            _log.info(
                "%s has %d streams of audio: number %d is read", path, len(container.streams.audio), stream.index
            )
        if not rate or not stream.channels or stream.format is None:
            what = "does not tell its sample rate, its channels or what its samples are"
            raise format_error(path, f"{what}: get it again, or convert it to .flac or .wav")
        if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
            allowed = f"{MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,} Hz"
            raise format_error(
                path,
                f"has a sample rate of {rate} Hz, outside {allowed}: its header is damaged, or it holds no sound",
            )
        if codec in ("pcm_f24le", "pcm_f16le"):  # what Cool Edit 96 meant by it
            raise format_error(path, f"holds samples of an unknown kind ({codec}): convert it to .flac")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        if name == "caf" and codec == "alac":  # FFmpeg 8.1 shortens the last packet twice
            stream.codec_context.options |= {"flags2": "skip_manual"}
        frames, seconds, exact = _length(path, name, status.st_size, sizes, stream, first)
        if frames is not None and frames > status.st_size * _SAMPLES_PER_BYTE:
            raise format_error(
                path, f"claims {frames:,} samples in {status.st_size:,} bytes: its header is damaged"
            )
        info = AudioInfo(
            path=path,
            format=f"{name} {codec}",
            sample_rate=rate,
            channels=stream.channels,
            frames=frames,
            duration=seconds,
            exact=exact,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            decoder=f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})",
        )
        yield OpenFile(info, stream, itertools.chain([first], packets), 0 if sizes is None else sizes.beyond)


def _length(
    path: Path, name: str, size: int, sizes: Sizes | None, stream: Any, first: Any
) -> tuple[int | None, float | None, bool]:
    """Stated samples, their seconds or a guess, and whether the number is exact."""
    container, rate = stream.container, stream.rate
    seconds = float(stream.duration * stream.time_base) if stream.duration else None
    if seconds is None and container.duration and not any(s.type == "video" for s in container.streams):
        seconds = container.duration / 1e6
    if sizes is not None and sizes.held <= 0:
        return 0, 0.0, True
    if sizes is not None and first.duration:
        per_second = first.size / float(first.duration * stream.time_base)
        if sizes.stated - sizes.held > LOST * per_second:
            raise format_error(
                path,
                f"is truncated: it holds {sizes.held / per_second:.2f} s of audio, {sizes.held:,} of the "
                f"{sizes.stated:,} bytes that its header states; get it again from where it came from",
            )
        if not stream.codec_context.name.startswith("pcm_"):
            return None, seconds, False
        frames = sizes.stated // round(per_second / rate)
        return frames, frames / rate, True
    if seconds is None or first.pos is None:
        return None, seconds, False
    frames = round(seconds * rate)
    if name in _EXACT:  # of joined files the count is that of the first
        exact = frames * stream.channels * stream.format.bytes > 0.9 * (size - first.pos)
        return frames if exact else None, seconds, exact
    counted = name in _STATED or (name == "mp3" and _counts_frames(path, size, first.pos))
    return frames if counted else None, seconds, False


def _counts_frames(path: Path, size: int, first: int) -> bool:
    """Whether a Xing or Info header before the first frame counts the frames of this file, not of a part of it.

    Bit 0 of its flags tells that it has the number of frames, bit 1 that of bytes, which follows.
    """
    with path.open("rb") as file:
        file.seek(max(0, first - _LONGEST_FRAME))
        before = file.read(min(first, _LONGEST_FRAME))
    header = before[max(before.rfind(b"Xing"), before.rfind(b"Info"), 0) :][:16]
    if header[:4] not in (b"Xing", b"Info") or len(header) < 16:
        return False
    flags, frames, count = struct.unpack(">III", header[4:])
    fits = size - first <= frames * _LONGEST_FRAME / 2 and (not flags & 2 or size - first - count < _BEHIND_MP3)
    return bool(flags & 1) and fits
