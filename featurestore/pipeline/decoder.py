"""Decodes a file, here or in a process of its own, whose samples come through its standard output.

PyAV decodes a packet at a time, and takes the lock of the interpreter for each: an MP3 of 1,152 samples a packet
holds it so often that two threads of a process are no faster than one. A pipe bounds by itself what is ahead, and
needs no shared memory, of which a container has 64 MB.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.addresses import noted_path
from featurestore.audio import Found, decode, file_sha256
from featurestore.audio.info import check_unchanged
from featurestore.errors import AudioFormatError, FeatureStoreError, SettingError
from featurestore.pipeline.deaths import ending

Decoded = npt.NDArray[np.float32] | dict[str, Any]

_HEAD = struct.Struct("<q")
"""Before each message: how many bytes of samples follow, or, below 0, of a pickle."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def decode_track(path: Path, sample_rate: int) -> Generator[Decoded, None, None]:
    """Decode a file, at a sample rate in Hz.

    Yields
    ------
    ndarray of float32, shape (samples,), or dict
        The blocks of its samples, and at last what is stored about it: what identifies the audio, how loud it is,
        and warnings.

    Raises
    ------
    FeatureStoreError
        If the file cannot be used, or changes meanwhile.
    """
    try:
        found = Found()
        yield from decode(path, sample_rate, found=found)
        info, sha256 = found.info, file_sha256(path)
        check_unchanged(info)
        yield {
            "audio": {
                **noted_path(path),
                "size": info.size,
                "mtime_ns": info.mtime_ns,
                "sha256": sha256,
                "duration": found.samples / info.sample_rate,
                "samples": found.samples,
                "sample_rate": info.sample_rate,
                "channels": info.channels,
                "format": info.format,
            },
            "levels": found.levels(),
            "warnings": found.warnings,
            "decoder": info.decoder,
        }
    except FeatureStoreError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else repr(error)
        raise AudioFormatError(f"{path} cannot be read: {reason}") from error


class DecoderProcess:
    """Decodes one file after the other in a process; one that dies is replaced for the next file."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, path: Path, sample_rate: int) -> Generator[Decoded, None, None]:
        """Do what `decode_track` does; a file that the process dies of cannot be decoded."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it has died since the last file, which is not this one's fault
        process = self._process = self._process or _start()
        stdin: Any = process.stdin
        stdout: Any = process.stdout
        done = False
        try:
            with contextlib.suppress(OSError):  # it has died, which is read next
                stdin.write(pickle.dumps((path, sample_rate)))
                stdin.flush()
            while len(head := stdout.read(_HEAD.size)) == _HEAD.size:
                (size,) = _HEAD.unpack(head)
                if size >= 0:
                    block = np.empty(size // 4, np.float32)
                    if stdout.readinto(block.data) < size:
                        break
                    yield block
                elif len(content := stdout.read(-size)) == -size:
                    done = True
                    if isinstance(last := pickle.loads(content), FeatureStoreError):
                        raise last
                    yield last
                    return
            how = ending(process.wait())
            raise AudioFormatError(f"{path} cannot be decoded: the process that decodes it {how}")
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]


def _start() -> subprocess.Popen[bytes]:
    """Start a process, which imports no main module: scripts need no guard."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from featurestore.pipeline.decoder import serve; serve()"
    try:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=1 << 20,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,  # Ctrl-C is for the build, which ends this process
        )
    except OSError as error:
        raise SettingError(
            f"a process that decodes does not start ({error.strerror}): ask for fewer `workers`"
        ) from error


def serve() -> None:
    """Decode what standard input asks for, until it ends or nobody reads."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the samples
    last: Decoded | FeatureStoreError
    try:
        while True:
            path, sample_rate = pickle.load(sys.stdin.buffer)
            try:
                for last in decode_track(path, sample_rate):
                    if isinstance(last, np.ndarray):
                        out.write(_HEAD.pack(last.nbytes))
                        out.write(last.data)
            except FeatureStoreError as error:
                last = error
            content = pickle.dumps(last)
            out.write(_HEAD.pack(-len(content)) + content)
            out.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without a last word about what is left in `out`
