"""Opening a file with FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from featurestore.audio.containers import Patched, Sizes
from featurestore.audio.info import quoted
from featurestore.errors import AudioFormatError, MissingDependencyError

_log = logging.getLogger("featurestore")

_DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,caf,dsf,dts,eac3,flac,iff,ircam,matroska,mov,mp3,mpc,mpc8,nistsphere,ogg,tak,tta,"
    "voc,w64,wav,wv"
)
"""What may read a file: containers of sound. Others, such as playlists, name files and addresses."""


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
def opened(path: Path, sizes: Sizes | None) -> Iterator[tuple[Any, Any]]:
    """The file and its best stream of audio."""
    av = load_av()
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
