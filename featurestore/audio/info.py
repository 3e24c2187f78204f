"""What the header of an audio file says, and the checks that need no decoder."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from featurestore.errors import AudioFormatError, AudioNotFoundError, AudioTooShortError
from featurestore.spelling import spelling_hint

MIN_DURATION = 1.0
"""Seconds that a track must have at least."""

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
"""Hz; a rate outside is a damaged header, not music (1 Hz would turn one minute of samples into a month)."""


@dataclass(frozen=True, kw_only=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes
    ----------
    path : Path
        As given.
    format : str
        Container and codec, as FFmpeg names them: "wav pcm_s16le".
    sample_rate : int
        Hz.
    channels : int
        At least 1.
    frames : int or None
        Samples per channel that the header states and decoding must find; None where it does not say.
    duration : float or None
        Seconds; an estimate where `frames` is None, and None where there is none either.
    exact : bool
        Whether `frames` is the number of samples, and not rounded or that of a codec's blocks.
    size : int
        Bytes of the file.
    mtime_ns : int
        Time of the file's last change, nanoseconds since 1970.
    decoder : str
        Name and version of what decodes it.
    """

    path: Path
    format: str
    sample_rate: int
    channels: int
    frames: int | None
    duration: float | None
    exact: bool
    size: int
    mtime_ns: int
    decoder: str


def quoted(path: str | os.PathLike[str]) -> str:
    """A path for a message: in quotes, and always valid unicode on one line, whatever the name is."""
    return repr(os.fspath(path))


def format_error(path: Path, what: str) -> AudioFormatError:
    """An error that names the file, and says what is wrong with it."""
    return AudioFormatError(f"{quoted(path)} {what}")


def file_status(path: Path) -> os.stat_result:
    """Status of a regular file.

    AudioNotFoundError is raised if there is none, or it is a directory or a link that leads nowhere,
    AudioFormatError if it is a FIFO, a socket or a device, or lies in a folder that may not be read.
    """
    try:
        status = path.stat()
    except PermissionError as error:
        raise format_error(path, f"cannot be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        link = _dangling(path)
        reason = getattr(error, "strerror", None) or error
        raise AudioNotFoundError(
            f"{quoted(path)} is not there{link}: {reason}{'' if link else spelling_hint(path)}"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        what = ", not an audio file"
        try:
            os.scandir(path).close()
        except OSError as error:
            what = f" that cannot be read: {error.strerror}"
        raise AudioNotFoundError(f"{quoted(path)} is a directory{what}")
    if not stat.S_ISREG(status.st_mode):
        raise format_error(path, "is a pipe, a socket or a device, not a file: save its audio to a file")
    return status


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """A regular file, open for reading; errors as those of `file_status`."""
    file_status(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise format_error(path, f"cannot be read: {error.strerror}") from None


def check_duration(info: AudioInfo, frames: int | None) -> None:
    """Raise AudioTooShortError if so many samples of a file are shorter than `MIN_DURATION`."""
    rate = info.sample_rate
    if frames is not None and frames < MIN_DURATION * rate:
        seconds = math.floor(frames / rate * 1e6) / 1e6  # never rounded up to what would be enough
        raise AudioTooShortError(
            f"{quoted(info.path)} has {seconds:.6f} s of audio ({frames:,} samples at {rate:,} Hz); at least "
            f"{MIN_DURATION} s ({math.ceil(MIN_DURATION * rate):,} samples) are needed"
        )


def check_unchanged(info: AudioInfo) -> None:
    """Raise AudioFormatError if the file is no longer the one of which `info` tells."""
    status = file_status(info.path)
    if (status.st_size, status.st_mtime_ns) != (info.size, info.mtime_ns):
        raise format_error(info.path, "changed while it was read: run again when nothing writes to it")


def _dangling(path: Path) -> str:
    """What a message says of a link that leads nowhere, "" for anything else."""
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        return ""
    if "annex/objects/" in target:
        return " (a link of git-annex to content that is not here: `git annex get` brings it)"
    return " (a link that leads nowhere)"
