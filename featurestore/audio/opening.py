"""Opening a file with FFmpeg's libraries (PyAV), and what its header says of its length."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from featurestore.audio.containers import Patched, Sizes, read_sizes
from featurestore.audio.impostors import HEAD_BYTES, what_it_is
from featurestore.audio.info import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, AudioInfo, format_error, open_file
from featurestore.audio.mpeg import counts_frames
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

_log = logging.getLogger("featurestore")


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """An audio file that is open: its header, and FFmpeg's container, best stream of audio, and packets of it."""

    info: AudioInfo
    sizes: Sizes | None
    container: Any
    stream: Any
    packets: Iterator[Any]


@cache
def load_av() -> Any:
    """The module `av`, which does not write to stderr.

    Raises
    ------
    MissingDependencyError
        If it does not import.
    """
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
    """Open a file.

    Raises
    ------
    AudioNotFoundError, AudioFormatError
        If it is not there, is no audio that FFmpeg reads, has an impossible header, or holds less than it states.
    MissingDependencyError
        If PyAV does not import.
    """
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
        rate, codec = stream.rate, stream.codec_context.name
        if len(container.streams.audio) > 1:
            _log.info(
                "%s has %d streams of audio: number %d is read", path, len(container.streams.audio), stream.index
            )
        if not rate or not stream.channels or stream.format is None:
            raise format_error(path, "does not state its sample rate or channels: convert it to .flac or .wav")
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
        if container.format.name == "caf" and codec == "alac":  # FFmpeg 8.1 shortens the last packet twice
            stream.codec_context.options |= {"flags2": "skip_manual"}
        frames, seconds, exact = _length(path, status.st_size, sizes, container, stream, first)
        if frames is not None and frames > status.st_size * _SAMPLES_PER_BYTE:
            raise format_error(
                path, f"claims {frames:,} samples in {status.st_size:,} bytes: its header is damaged"
            )
        info = AudioInfo(
            path=path,
            format=f"{container.format.name.split(',')[0]} {codec}",
            sample_rate=rate,
            channels=stream.channels,
            frames=frames,
            duration=seconds,
            exact=exact,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            decoder=f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info})",
        )
        yield OpenFile(
            info=info,
            sizes=sizes,
            container=container,
            stream=stream,
            packets=itertools.chain([first], packets),
        )


def _length(
    path: Path, size: int, sizes: Sizes | None, container: Any, stream: Any, first: Any
) -> tuple[int | None, float | None, bool]:
    """Stated samples, their seconds or a guess, and whether the number is exact."""
    name, rate = container.format.name.split(",")[0], stream.rate
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
    counted = name in _STATED or (name == "mp3" and counts_frames(path, size, first.pos))
    return frames if counted else None, seconds, False
