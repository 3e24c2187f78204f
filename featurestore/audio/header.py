"""What the header of a file says of its length, and whether that can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featurestore.audio.containers import Sizes, read_sizes
from featurestore.audio.info import AudioInfo, quoted
from featurestore.audio.mpeg import counts_frames
from featurestore.audio.opening import load_av, opened
from featurestore.audio.timeline import LOST
from featurestore.errors import AudioFormatError

_EXACT = {"ape", "flac", "tta", "wv"}
"""Lossless formats that count samples."""

_STATED = {"asf", "dsf", "matroska", "mov", "mpc", "mpc8", "nistsphere", "tak"}
"""Other formats that state their length; that of the rest is guessed, or the time of the last page."""


def parse_header(path: Path, status: os.stat_result) -> AudioInfo:
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
    av = load_av()
    sizes = read_sizes(path)
    with opened(path, sizes) as (container, stream):
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
    counted = name in _STATED or (name == "mp3" and counts_frames(info_path, size, first.pos))
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
