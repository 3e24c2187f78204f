"""From a file to mono samples at one rate, in blocks: a long file takes no more memory than a short one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.audio.ffmpeg import read_blocks, read_part
from featurestore.audio.header import parse_header
from featurestore.audio.info import AudioInfo, check_duration, check_header, check_unchanged, file_status, quoted
from featurestore.audio.levels import Levels
from featurestore.audio.resample import check_rate, resample_blocks
from featurestore.errors import AudioContentError

BLOCK_SECONDS = 5
_BLOCK_SAMPLES = 1 << 20
"""Samples of a block, of all channels together: 4 MiB."""

_LOUDEST = 1e10
"""Samples beyond are no sound, not even integers as floats; from 1e19 on their squares overflow in a model."""

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
    info = read_checked_header(Path(path))
    if info.frames is not None:
        check_duration(info.path, info.frames, info.sample_rate)
    return info


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

    def __init__(self) -> None:
        self.levels = Levels()
        self.warnings: list[str] = []

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
    check_rate(target_sr)
    info = read_header(path) if info is None else info
    yield from resample_blocks(mono_blocks(info, found or Found()), info.sample_rate, int(target_sr))


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
    info = read_header(path)
    if info.frames is not None and info.exact:
        return info.frames, info.sample_rate
    return sum(len(block) for block in mono_blocks(info, Found())), info.sample_rate


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
    info = read_header(path)
    part = read_part(info, start, samples)
    return _mean_of_channels(part)


def read_checked_header(path: Path) -> AudioInfo:
    """What `read_header` tells, of files that are too short as well."""
    status = file_status(path)
    return check_header(parse_header(path, status))


def mono_blocks(info: AudioInfo, found: Found) -> Iterator[Samples]:
    """Mono samples at the file's own rate, at least `MIN_DURATION` of them, all finite."""
    if info.frames is not None:
        check_duration(info.path, info.frames, info.sample_rate)
    check_unchanged(info)
    block_frames = max(1, min(BLOCK_SECONDS * info.sample_rate, _BLOCK_SAMPLES // info.channels))
    for block in read_blocks(info, block_frames, found.warnings.append):
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
    check_duration(info.path, found.samples, info.sample_rate)
    found.warnings += found.levels.warnings()


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
