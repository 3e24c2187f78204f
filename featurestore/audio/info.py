"""What the header of an audio file says, and the checks that need no decoder."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from featurestore.audio.impostors import HEAD_BYTES, what_it_is
from featurestore.errors import AudioFormatError, AudioNotFoundError, AudioTooShortError
from featurestore.spelling import spelling_hint

MIN_DURATION = 1.0
"""Seconds that a track must have at least."""

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000
"""Hz; a rate outside is a damaged header, not music (1 Hz would turn one minute of samples into a month)."""

_SAMPLES_PER_BYTE = 16_384
"""More samples than any codec puts in a byte: silence in FLAC has about 6,600."""


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


def file_status(path: Path) -> os.stat_result:
    """Status of a regular file that can be opened and may be audio.

    Raises
    ------
    AudioNotFoundError
        If there is no file, or a directory, or a link that leads nowhere.
    AudioFormatError
        If it is a FIFO, a socket or a device, may not be read, or begins as no audio does: it is empty, a page,
        a pointer, text.
    """
    try:
        status = path.stat()
    except PermissionError as error:
        raise AudioFormatError(f"{quoted(path)} cannot be read: {_reason(error)}") from None
    except (OSError, ValueError) as error:
        link = _dangling(path)
        raise AudioNotFoundError(
            f"{quoted(path)} is not there{link}: {_reason(error)}{'' if link else spelling_hint(path)}"
        ) from None
    if stat.S_ISDIR(status.st_mode):
        try:
            os.scandir(path).close()
        except OSError as error:
            raise AudioNotFoundError(
                f"{quoted(path)} is a directory that cannot be read: {_reason(error)}"
            ) from None
        raise AudioNotFoundError(f"{quoted(path)} is a directory, not an audio file")
    if not stat.S_ISREG(status.st_mode):
        raise AudioFormatError(
            f"{quoted(path)} is a pipe, a socket or a device, not a file: save its audio to a file"
        )
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise AudioFormatError(f"{quoted(path)} cannot be read: {_reason(error)}") from None
    if (impostor := what_it_is(head)) is not None:
        raise AudioFormatError(f"{quoted(path)} is {impostor}")
    return status


def check_header(info: AudioInfo) -> AudioInfo:
    """The info itself, if it can be that of audio.

    Raises
    ------
    AudioFormatError
        If the sample rate or the number of samples is impossible.
    """
    if not MIN_SAMPLE_RATE <= info.sample_rate <= MAX_SAMPLE_RATE:
        raise AudioFormatError(
            f"{quoted(info.path)} has a sample rate of {info.sample_rate} Hz, outside {MIN_SAMPLE_RATE:,} to "
            f"{MAX_SAMPLE_RATE:,} Hz: its header is damaged, or it holds no sound"
        )
    if info.frames is not None and info.frames > info.size * _SAMPLES_PER_BYTE:
        raise AudioFormatError(
            f"{quoted(info.path)} claims {info.frames:,} samples in {info.size:,} bytes: its header is damaged"
        )
    return info


def check_duration(path: Path, frames: int, sample_rate: int) -> None:
    """Raise AudioTooShortError if so many samples are shorter than `MIN_DURATION`."""
    if frames < MIN_DURATION * sample_rate:
        seconds = math.floor(frames / sample_rate * 1e6) / 1e6  # never rounded up to what would be enough
        raise AudioTooShortError(
            f"{quoted(path)} has {seconds:.6f} s of audio ({frames:,} samples at {sample_rate:,} Hz); at least "
            f"{MIN_DURATION} s ({math.ceil(MIN_DURATION * sample_rate):,} samples) are needed"
        )


def check_unchanged(info: AudioInfo) -> None:
    """Raise AudioFormatError if the file is no longer the one of which `info` tells."""
    status = file_status(info.path)
    if (status.st_size, status.st_mtime_ns) != (info.size, info.mtime_ns):
        raise AudioFormatError(
            f"{quoted(info.path)} changed while it was read: run again when nothing writes to it"
        )


def _dangling(path: Path) -> str:
    """What a message says of a link that leads nowhere, "" for anything else."""
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        return ""
    if "annex/objects/" in target:
        return " (a link of git-annex to content that is not here: `git annex get` brings it)"
    return " (a link that leads nowhere)"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
