"""Reading what FFmpeg reads and libsndfile does not, through torchcodec, one packet after the other."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.audio.info import AudioInfo, quoted
from featurestore.errors import AudioFormatError, MissingDependencyError

SUFFIXES = frozenset(
    f".{x}"
    for x in (
        *("3gp", "aac", "ac3", "amr", "ape", "dsf", "m4a", "m4b", "mka", "mkv", "mov", "mp4", "mpc", "tta"),
        *("weba", "webm", "wma", "wv"),
    )
)
"""Suffixes of formats that need torchcodec."""

_WITHOUT_HEADER = frozenset({".aac", ".ac3", ".amr"})
"""Suffixes of bare streams, whose duration is guessed from their bit rate."""


def available() -> bool:
    """Whether torchcodec is installed; it is not imported to find out."""
    return importlib.util.find_spec("torchcodec") is not None


def read_header(path: Path, status: os.stat_result) -> AudioInfo:
    """Header of a file.

    Raises
    ------
    AudioFormatError
        If FFmpeg cannot read it, or it holds no audio.
    MissingDependencyError
        If torchcodec or FFmpeg is not installed.
    """
    codec = _torchcodec()
    with path.open("rb") as file:
        demuxer = _demuxer(path, file)
        metadata = demuxer.streams[0].metadata
    if not metadata.sample_rate or not metadata.num_channels:
        raise AudioFormatError(f"{quoted(path)} does not state its sample rate or channels: convert it to .flac")
    return AudioInfo(
        path=path,
        format=f"{path.suffix[1:].upper()} {metadata.codec}",
        sample_rate=metadata.sample_rate,
        channels=metadata.num_channels,
        frames=None,
        duration=metadata.duration_seconds_from_header or demuxer.metadata.duration_seconds_from_header,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        decoder=f"torchcodec {codec.__version__} (FFmpeg {codec.ffmpeg_major_version})",
    )


def read_blocks(info: AudioInfo, block_frames: int) -> Iterator[npt.NDArray[np.float32]]:
    """All samples of a file, in order.

    Parameters
    ----------
    info : AudioInfo
        The file.
    block_frames : int
        Samples per channel of a block, up to a packet more; the last one may be shorter.

    Yields
    ------
    ndarray of float32, shape (frames, channels)

    Raises
    ------
    AudioFormatError
        If the file is damaged, or ends before the duration that its header states.
    """
    path, rate = info.path, info.sample_rate
    done = 0
    packets: list[npt.NDArray[np.float32]] = []
    waiting = 0
    with path.open("rb") as file:
        demuxer = _demuxer(path, file)
        stated = _stated_duration(path, demuxer)
        try:
            for packet in _packets(demuxer):
                packets.append(packet)
                waiting += packet.shape[1]
                if waiting >= block_frames:
                    yield np.concatenate(packets, axis=1).T
                    done += waiting
                    packets, waiting = [], 0
        except RuntimeError as error:
            raise AudioFormatError(
                f"{quoted(path)} is damaged after {(done + waiting) / rate:.1f} s: {_first_line(error)}; "
                "get it again or repair it"
            ) from None
    if waiting:
        yield np.concatenate(packets, axis=1).T
        done += waiting
    # Containers round durations, and count the padding of the first packets or do not.
    if done < (stated - 1) * rate:
        raise AudioFormatError(
            f"{quoted(path)} is truncated or damaged: {done / rate:.2f} s were decoded of the {stated:.2f} s that "
            "its header states; get it again or repair it"
        )


def _stated_duration(path: Path, demuxer: Any) -> float:
    """Seconds of audio that the header states, or 0 if none or only a guess."""
    if path.suffix.lower() in _WITHOUT_HEADER:
        return 0.0
    whole = demuxer.metadata
    of_all = whole.duration_seconds_from_header if whole.best_video_stream_index is None else None
    return demuxer.streams[0].metadata.duration_seconds_from_header or of_all or 0.0


def _packets(demuxer: Any) -> Iterator[npt.NDArray[np.float32]]:
    """Samples of the packets, [channels, frames]: ranges would restart the codec at each, with wrong samples."""
    from torchcodec.decoders import AudioConverter

    decoder = demuxer.streams[0].make_decoder()
    converter = AudioConverter()
    for packet in demuxer:
        for samples in decoder.decode(packet):
            yield converter.convert(samples).data.numpy()
    for samples in decoder.drain():
        yield converter.convert(samples).data.numpy()


def _demuxer(path: Path, file: Any) -> Any:
    # An open file instead of its name: names need not be UTF-8, nor be free of FFmpeg's "protocol:".
    from torchcodec.decoders import Demuxer

    try:
        return Demuxer(file, streams="audio")
    except (RuntimeError, ValueError) as error:
        raise AudioFormatError(f"{quoted(path)} is not read by FFmpeg as audio: {_first_line(error)}") from None


def _torchcodec() -> Any:
    try:
        import torchcodec
        from torchcodec.decoders import AudioConverter, Demuxer  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"{', '.join(sorted(SUFFIXES))} are read through torchcodec, which is not installed: "
            "pip install torchcodec, and install FFmpeg; or convert the files to .flac"
        ) from None
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"torchcodec does not load ({_first_line(error)}): it needs version 0.17 or newer, that of the "
            "installed torch, and FFmpeg 4 to 8 on this machine; or convert the files to .flac"
        ) from error
    return torchcodec


def _first_line(error: Exception) -> str:
    """The part of a message of torchcodec behind function, file and line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rsplit(".cpp:", 1)[-1].split(", ", 1)[-1]
