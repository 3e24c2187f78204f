"""Whole files, parts of them, and signals: loading, windows, and whether a file can be used."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.decode import Found, Samples, decode, mean_of_channels, mono_blocks, samples_of
from featurestore.audio.info import check_duration, format_error, open_file
from featurestore.audio.opening import load_av, opened
from featurestore.errors import AudioError, AudioNotFoundError, SettingError
from featurestore.keywords import required
from featurestore.windows import hop_samples, window_samples, window_starts

_SEEKABLE = {"aiff", "au", "caf", "flac", "mp3", "ogg", "w64", "wav", "wv"}
"""Formats in which a sample is found by its time, exactly."""


def load_audio(
    path: str | os.PathLike[str] | None = None,
    target_sr: int = 24_000,
    *,
    audio_path: str | os.PathLike[str] | None = None,
) -> Samples:
    """Decode a whole file into mono samples.

    Parameters
    ----------
    path : path-like
        The file.
    target_sr : int
        Hz.
    audio_path : path-like
        Another name of `path`.

    Returns
    -------
    ndarray of float32, shape (samples,)

    Raises
    ------
    AudioError, MissingDependencyError, SettingError
        As `decode`.

    Examples
    --------
    >>> samples = load_audio("music/rock/song.wav", target_sr=16_000)
    >>> samples.shape, samples.dtype
    ((192000,), dtype('float32'))
    """
    return np.concatenate(list(decode(required(path=path, audio_path=audio_path), target_sr)))


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
            stream.container.seek(first + int(max(0, start - info.sample_rate // 4) / unit), stream=stream)
            for frame in stream.container.decode(stream):
                at = round(((frame.pts or first) - first) * unit) if at is None else at
                if at > start or not wanted:
                    break
                if (skipped := start - at) < frame.samples:
                    parts.append(mean_of_channels(samples_of(frame)[:, skipped : skipped + wanted]))
                    wanted -= len(parts[-1])
                    start += len(parts[-1])
                at += frame.samples
        except load_av().FFmpegError as error:
            raise format_error(info.path, f"cannot be read at {start:,} ({error.strerror})") from None
    return np.concatenate(parts)


def segment_audio(
    audio: npt.ArrayLike, segment_duration: float = 5.0, overlap_ratio: float = 0.5, sample_rate: int = 24_000
) -> npt.NDArray[Any]:
    """Cut a signal into windows, as `featurestore.windows` lays them.

    Parameters
    ----------
    audio : array_like, shape (samples,)
        Mono.
    segment_duration : float
        Seconds.
    overlap_ratio : float
        Share of a window that the next one repeats, in [0, 1).
    sample_rate : int
        Hz.

    Returns
    -------
    ndarray, shape (segments, samples)
        A copy, in the signal's type; one window of the signal's own length if it is shorter than a window.

    Raises
    ------
    SettingError
        If the signal is not of one dimension, not of real numbers, or empty, or a setting is out of range.

    Examples
    --------
    >>> samples = load_audio("music/rock/song.wav")
    >>> segment_audio(samples, segment_duration=5.0, overlap_ratio=0.5).shape
    (4, 120000)
    """
    try:
        signal = np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SettingError(f"`audio` must be an array of samples: {error}") from None
    if signal.ndim != 1:
        raise SettingError(f"`audio` must be mono, of shape (samples,), not {signal.shape}: average its channels")
    if signal.dtype.kind not in "iuf" or not len(signal):
        raise SettingError(
            f"`audio` must hold real samples, at least one, not {len(signal)} of type {signal.dtype}"
        )
    window = window_samples(segment_duration, sample_rate)
    starts = window_starts(len(signal), window, hop_samples(window, overlap_ratio, name="overlap_ratio"))
    length = min(window, len(signal))
    segments: npt.NDArray[Any] = np.lib.stride_tricks.sliding_window_view(signal, length)[starts]
    return segments


def validate_audio_file(
    path: str | os.PathLike[str] | None = None, *, audio_path: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Tell whether features of a file can be extracted: it is there, long enough, and decodes to its end.

    Parameters
    ----------
    path : path-like
        The file; it is decoded whole, in blocks.
    audio_path : path-like
        Another name of `path`.

    Returns
    -------
    dict
        ``valid``, ``file_exists``, ``readable`` (its header is understood): bool; ``sample_rate`` (Hz),
        ``duration`` (seconds), ``channels``: numbers, or None where not known; ``errors``: list of str, empty
        if valid.

    Raises
    ------
    MissingDependencyError
        If the package that decodes it is not installed.

    Examples
    --------
    >>> found = validate_audio_file("music/rock/song.wav")
    >>> found["valid"], found["sample_rate"], found["duration"]
    (True, 24000, 12.0)
    >>> validate_audio_file("music/none.wav")["file_exists"]
    False
    """
    path = Path(required(path=path, audio_path=audio_path))
    known: dict[str, Any] = {"sample_rate": None, "duration": None, "channels": None}
    readable, errors, exists = False, [], True
    try:
        with opened(path) as file:
            info, readable = file.info, True
            known = {"sample_rate": info.sample_rate, "duration": info.duration, "channels": info.channels}
            known["duration"] = sum(map(len, mono_blocks(file, Found()))) / info.sample_rate
    except AudioError as error:
        exists = not isinstance(error, AudioNotFoundError)
        errors = [str(error)]
    return {"valid": not errors, "file_exists": exists, "readable": readable, **known, "errors": errors}


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, 64 hex digits, read in blocks.

    Raises
    ------
    AudioNotFoundError, AudioFormatError
        If there is no such file, or it cannot be read.
    """
    with open_file(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
