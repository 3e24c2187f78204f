"""Reading what libsndfile reads, one block after the other."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.info import AudioInfo, quoted
from featurestore.audio.mpeg import MPEG_DECODER_DELAY, CountedFrames, mpeg_layout
from featurestore.errors import AudioFormatError, MissingDependencyError

_SUFFIXES = {
    "AIFF": "aif aiff aifc",
    "AU": "au snd",
    "AVR": "avr",
    "CAF": "caf",
    "FLAC": "flac",
    "IRCAM": "sf ircam",
    "MP3": "mp1 mp2 mp3",
    "NIST": "nist sph",
    "OGG": "ogg oga opus",
    "PAF": "paf fap",
    "PVF": "pvf",
    "RF64": "rf64",
    "SD2": "sd2",
    "SDS": "sds",
    "SVX": "iff svx 8svx 16sv",
    "VOC": "voc",
    "W64": "w64",
    "WAV": "wav wave bwf",
    "WVE": "wve",
    "XI": "xi",
}
"""Suffixes of libsndfile's formats, but for RAW (no header), HTK and MAT (files that mostly hold no sound)."""

_COUNTED = {"AIFF", "AU", "CAF", "FLAC", "RF64", "W64", "WAV", "WAVEX"}, {"PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
"""Containers and codecs of files whose number of samples follows from their size, or (FLAC) is stated."""

_UNKNOWN_LENGTH = 1 << 60

_MOST_UNREAD = 1 << 16
"""Bytes behind the last frame of an MPEG file that may be something else."""

# libsndfile cuts the sizes of headers to what is in the file and tells so in its log only.
_CUT = re.compile(r"^\s*(?:data|SSND|Data Size|BODY|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"reading audio needs the package soundfile, which does not import ({error}): "
            'pip install "featurestore[extract]"'
        ) from error
    return soundfile


@cache
def suffixes() -> frozenset[str]:
    """Suffixes of the formats that the installed libsndfile reads, lower case, with the dot.

    Raises
    ------
    MissingDependencyError
        If soundfile is not installed.
    """
    soundfile = _soundfile()
    found = {f".{x}" for name in soundfile.available_formats() for x in _SUFFIXES.get(name, "").split()}
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        found.discard(".opus")
    return frozenset(found)


def read_header(path: Path, status: os.stat_result) -> AudioInfo:
    """Header of a file.

    Raises
    ------
    AudioFormatError
        If libsndfile cannot read it, or the file ends before its audio does.
    """
    soundfile = _soundfile()
    with _opened(path) as file:
        frames: int | None = file.frames if file.frames < _UNKNOWN_LENGTH else None
        duration = None if frames is None else frames / file.samplerate
        if frames is not None and (cut := _CUT.search(file.extra_info)):
            _check_cut(path, duration or 0.0, stated=int(cut[1]), found=int(cut[2]))
        if file.format == "MP3" and not mpeg_layout(path).states_length:
            frames = None
        return AudioInfo(
            path=path,
            format=f"{file.format} {file.subtype}",
            sample_rate=file.samplerate,
            channels=file.channels,
            frames=frames,
            duration=duration,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            decoder=f"soundfile {soundfile.__version__} ({soundfile.__libsndfile_version__})",
        )


def is_counted(info: AudioInfo) -> bool:
    """Whether the number of samples in a header is exact, so that decoding gives as many or fails."""
    containers, codecs = _COUNTED
    container, _, codec = info.format.partition(" ")
    return info.frames is not None and container in containers and codec.partition("_")[0] in codecs


def read_blocks(info: AudioInfo, block_frames: int) -> Iterator[npt.NDArray[np.float32]]:
    """All samples of a file, in order.

    Parameters
    ----------
    info : AudioInfo
        The file.
    block_frames : int
        Samples per channel of a block; the last one may be shorter.

    Yields
    ------
    ndarray of float32, shape (frames, channels)
        New memory each.

    Raises
    ------
    AudioFormatError
        If the file is damaged, or ends before the length that its header states.
    """
    path, rate, name = info.path, info.sample_rate, quoted(info.path)
    error_type = _soundfile().SoundFileError
    stated = "" if info.frames is None else f" of the {info.frames / rate:.2f} s that its header states"
    done = 0
    with _uncounted_frames(info) as frames, _opened(path, frames) as file:
        if frames is not None:
            # A count makes the decoder drop its delay; the file itself has none, and every decoder keeps it.
            with _opened(path) as plain:
                head: npt.NDArray[np.float32] = plain.read(MPEG_DECODER_DELAY, dtype="float32", always_2d=True)
            done += len(head)
            yield head
        try:
            while len(block := file.read(out=np.empty((block_frames, file.channels), dtype=np.float32))):
                done += len(block)
                yield block
        except error_type as error:
            raise AudioFormatError(
                f"{name} is truncated or damaged between {done / rate:.1f} and {(done + block_frames) / rate:.1f} "
                f"s{stated}{_detail(error)}; get it again or repair it"
            ) from None
        if frames is not None and frames.failure is not None:
            raise AudioFormatError(f"{name} cannot be read: {frames.failure.strerror}")
        if frames is not None and frames.unread > _MOST_UNREAD:
            raise AudioFormatError(
                f"{name} is damaged: the decoder gave up after {done / rate:.2f} s, {frames.unread:,} bytes "
                "before the end of its audio; get it again or repair it"
            )
    # Encoders of MPEG audio count their own padding differently, by a few frames of some ms.
    tolerance = rate if "MPEG" in info.format else 0
    if info.frames is not None and done < info.frames - tolerance:
        raise AudioFormatError(
            f"{name} is truncated or damaged: {done / rate:.2f} s were decoded{stated}; get it again or repair it"
        )


@contextlib.contextmanager
def _uncounted_frames(info: AudioInfo) -> Iterator[CountedFrames | None]:
    """The frames of an MP3 file that does not count them, or None for any other file."""
    if info.frames is not None or not info.format.startswith("MP3"):
        yield None
        return
    layout = mpeg_layout(info.path)
    if not layout.is_layer_3:
        yield None
        return
    with CountedFrames(info.path, layout) as frames:
        yield frames


@contextlib.contextmanager
def _opened(path: Path, frames: CountedFrames | None = None) -> Iterator[Any]:
    """The file, or the frames of one, as a SoundFile that reads in order."""
    soundfile = _soundfile()
    if path.suffix.lower() == ".raw":
        raise AudioFormatError(f"{quoted(path)} has no header that states its sample rate: convert it to .wav")
    # Bytes, because soundfile encodes names strictly and names need not be UTF-8; absolute, because libsndfile
    # reads "-" as standard input.
    source = os.fsencode(path.absolute()) if frames is None else frames
    try:
        file = soundfile.SoundFile(source)
    except soundfile.SoundFileError as error:
        raise AudioFormatError(
            f"{quoted(path)} is in no format that libsndfile {soundfile.__libsndfile_version__} reads, or its "
            f"header is damaged{_detail(error)}: convert it to .flac or .wav"
        ) from None
    with file:
        if file.format == "RAW":  # guessed from the suffix alone: any text renamed .au is mu-law
            raise AudioFormatError(f"{quoted(path)} has no audio header: it is not what its suffix says")
        # soundfile seeks after each read of a seekable file, which decoders of MP3 and Opus do only roughly.
        file.seekable = lambda: False
        yield file


def _check_cut(path: Path, held: float, *, stated: int, found: int) -> None:
    """Raise AudioFormatError if a header states more bytes of audio than were found, which last `held` seconds."""
    if min(abs(stated - (1 << 31)), abs(stated - (1 << 32))) <= 1 << 16:
        return  # what programs that write to a pipe state, since they do not know the size
    if stated > found:
        raise AudioFormatError(
            f"{quoted(path)} is truncated: it holds {held:.2f} s of audio, {found:,} of the {stated:,} bytes that "
            "its header states; get it again from where it came from"
        )


def _detail(error: Exception) -> str:
    text = getattr(error, "error_string", "").removeprefix("Error : ").rstrip(".")
    # The text of a failed guess at MP3, about a file that was just opened, would mislead.
    return f" ({text})" if text and "regular file" not in text else ""
