"""Reading what libsndfile reads, one block after the other."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.info import AudioInfo, quoted
from featurestore.audio.mpeg import AudioStart, audio_start
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

_UNKNOWN_LENGTH = 1 << 60

_MOST_REST = 1 << 16
"""Bytes behind the last frame of an MPEG file that may be no audio."""

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
    with _opened(path, None) as (file, _):
        frames: int | None = file.frames if file.frames < _UNKNOWN_LENGTH else None
        duration = None if frames is None else frames / file.samplerate
        if frames is not None and (cut := _CUT.search(file.extra_info)):
            _check_cut(path, duration or 0.0, stated=int(cut[1]), found=int(cut[2]))
        if file.format == "MP3" and not audio_start(path).states_length:
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
    path, rate = info.path, info.sample_rate
    error_type = _soundfile().SoundFileError
    start = audio_start(path) if info.frames is None and info.format.startswith("MP3") else None
    name = quoted(path)
    stated = "" if info.frames is None else f" of the {info.frames / rate:.2f} s that its header states"
    done = 0
    with _opened(path, start) as (file, rest):
        try:
            while len(block := file.read(out=np.empty((block_frames, file.channels), dtype=np.float32))):
                done += len(block)
                yield block
        except error_type as error:
            raise AudioFormatError(
                f"{name} is truncated or damaged between {done / rate:.1f} and {(done + block_frames) / rate:.1f} "
                f"s{stated}{_detail(error)}; get it again or repair it"
            ) from None
        if (undecoded := len(rest())) > _MOST_REST:
            raise AudioFormatError(
                f"{name} is damaged: the decoder gave up after {done / rate:.2f} s, {undecoded:,} bytes before "
                "the end of the file; get it again or repair it"
            )
    # Encoders of MPEG audio count their own padding differently, by a few frames of some ms.
    tolerance = rate if "MPEG" in info.format else 0
    if info.frames is not None and done < info.frames - tolerance:
        raise AudioFormatError(
            f"{name} is truncated or damaged: {done / rate:.2f} s were decoded{stated}; get it again or repair it"
        )


@contextlib.contextmanager
def _opened(path: Path, start: AudioStart | None) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """The file as a SoundFile that reads in order, from a socket if `start` is given, and what it leaves there."""
    soundfile = _soundfile()
    if path.suffix.lower() == ".raw":
        raise AudioFormatError(f"{quoted(path)} has no header that states its sample rate: convert it to .wav")
    with contextlib.ExitStack() as stack:
        # Bytes, because soundfile encodes names strictly and file names need not be UTF-8; libsndfile reads "-" as
        # standard input.
        source: bytes | int = os.fsencode(path.absolute())
        rest: Callable[[], bytes] = bytes
        if start is not None:
            receiver = stack.enter_context(_sent(path, start.offset))
            source, rest = receiver.fileno(), partial(_rest, receiver)
        try:
            file = stack.enter_context(soundfile.SoundFile(source, closefd=False))
        except soundfile.SoundFileError as error:
            raise AudioFormatError(
                f"{quoted(path)} is in no format that libsndfile {soundfile.__libsndfile_version__} reads, or its "
                f"header is damaged{_detail(error)}: convert it to .flac or .wav"
            ) from None
        if file.format == "RAW":  # guessed from the suffix alone: any text renamed .au is mu-law
            raise AudioFormatError(f"{quoted(path)} has no audio header: it is not what its suffix says")
        # soundfile seeks after each read of a seekable file, which decoders of MP3 and Opus do only roughly.
        file.seekable = lambda: False
        yield file, rest


@contextlib.contextmanager
def _sent(path: Path, offset: int) -> Iterator[socket.socket]:
    """Socket from which the file's bytes come, from `offset` on, as a thread sends them.

    From a pipe or socket, libsndfile decodes to the end; from a file, only as far as it guessed the length to be.
    Sockets, since shutting one down ends it even where another thread has forked meanwhile.
    """
    receiver, sender = socket.socketpair()
    failures: list[OSError] = []

    def send() -> None:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                while data := file.read(1 << 16):
                    sender.sendall(data)
        except (BrokenPipeError, ConnectionResetError):  # the reader has gone
            pass
        except OSError as error:
            failures.append(error)
        finally:
            with contextlib.suppress(OSError):
                sender.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send, name="featurestore-send", daemon=True)
    thread.start()
    with receiver, sender:
        try:
            yield receiver
        finally:
            with contextlib.suppress(OSError):
                receiver.shutdown(socket.SHUT_RD)
            thread.join()
    if failures:
        raise AudioFormatError(f"{quoted(path)} cannot be read: {failures[0].strerror}")


def _rest(receiver: socket.socket) -> bytes:
    """What the decoder left unread, but for tags (APEv2, Lyrics3) and padding."""
    data = b"".join(iter(partial(receiver.recv, 1 << 16), b""))
    return b"" if b"APETAGEX" in data or b"LYRICSBEGIN" in data else data.strip(b"\0")


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
