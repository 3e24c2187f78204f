"""Targets of the constant-Q reconstruction: computed once into a file beside the data, or in every step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from featurestore.errors import SettingError
from featurestore.models.spectra import ConstantQ
from featurestore.training.pretrain.corpus import Corpus, Frames, read_window
from featurestore.training.pretrain.processes import Processes
from featurestore.training.pretrain.report import TrainingProgress
from featurestore.training.pretrain.settings import CqtSettings

LOG_FLOOR = 1e-3
"""Added to magnitudes before their logarithm."""

_BLOCK = 1_500
"""Frames that are computed at a time: 20 s."""


class CqtTarget(nn.Module):
    """Magnitudes as nnAudio and librosa scale them; frame i is centred on sample i * hop, as in MERT's training.

    Parameters
    ----------
    settings : CqtSettings
    layout : Frames
    """

    def __init__(self, settings: CqtSettings, layout: Frames) -> None:
        super().__init__()
        self.layout = layout
        self.transform = ConstantQ(
            sample_rate=layout.rate,
            hop=layout.hop,
            bins=settings.bins,
            bins_per_octave=settings.bins_per_octave,
            lowest=settings.lowest,
        )
        self.register_buffer("scale", self.transform.lengths.sqrt() / 2, persistent=False)

    @torch.no_grad()
    def forward(self, wave: Tensor, frames: int, first: int = 0) -> Tensor:
        """Magnitudes, shape (windows, frames, bins); the first frame is centred on sample `first`."""
        with torch.autocast(wave.device.type, enabled=False):
            out: Tensor = self.transform(wave, frames, first) * self.get_buffer("scale")
            return out


def shaped(magnitudes: Tensor, settings: CqtSettings) -> Tensor:
    """What the network is to predict, of magnitudes [windows, frames, bins]."""
    target = torch.log(magnitudes + LOG_FLOOR) if settings.scale == "log" else magnitudes
    return target - target.mean(dim=(1, 2), keepdim=True) if settings.centre else target


class CqtFile:
    """Magnitudes of all files of a corpus in half precision, in a file that can be finished later.

    Parameters
    ----------
    folder : Path
        Where it is kept.
    corpus : Corpus
    settings : CqtSettings
    """

    def __init__(self, folder: Path, corpus: Corpus, settings: CqtSettings) -> None:
        self._corpus, self._settings = corpus, settings
        identity = {
            "bins": settings.bins,
            "bins_per_octave": settings.bins_per_octave,
            "lowest": settings.lowest,
            "rate": corpus.layout.rate,
            "hop": corpus.layout.hop,
            "manifest": str(corpus.manifest.resolve()),
        }
        files = _digest([(x.path, x.samples, x.changed) for x in corpus.entries])
        self._family = f"{corpus.manifest.stem}.cqt-{_digest(identity)}-"
        self._values = folder / f"{self._family}{files}.f16"
        self._done = folder / f"{self._family}{files}.done"

    def missing(self) -> list[int]:
        """Indices of the files that are not in it yet."""
        count = len(self._corpus.entries)
        try:
            done = np.fromfile(self._done, np.uint8)
        except FileNotFoundError:
            done = np.zeros(count, np.uint8)
        # One that was cut off says nothing about any file.
        return [int(i) for i in np.flatnonzero(done == 0)] if len(done) == count else list(range(count))

    def make(self) -> None:
        """Make the file, without values, if it is not there; those of the files as they were before are removed.

        Raises
        ------
        SettingError
            If it cannot be written.
        """
        size = self._corpus.frames * self._settings.bins * 2
        try:
            self._values.parent.mkdir(parents=True, exist_ok=True)
            for path in self._values.parent.glob(f"{self._family}*"):
                if path not in (self._values, self._done):
                    path.unlink(missing_ok=True)
            if not self._values.exists() or self._values.stat().st_size != size:
                self._done.unlink(missing_ok=True)
                with self._values.open("wb") as file:
                    _allocate(file, size)
            count = len(self._corpus.entries)
            if not self._done.exists() or self._done.stat().st_size != count:
                _publish(self._done, bytes(count))
        except OSError as error:
            raise SettingError(
                f"{self._values} cannot be written ({error.strerror}): set data.cache to another folder, or "
                "cqt.compute to 'always'"
            ) from None

    def fill(self, files: list[int]) -> None:
        """Compute the values of some files."""
        target = CqtTarget(self._settings, self._corpus.layout)
        values = self.values("r+")
        for index in files:
            entry = self._corpus.entries[index]
            wave = torch.from_numpy(read_window(entry, 0, entry.samples, self._corpus.layout.rate))
            for begin in range(0, entry.frames, _BLOCK):
                frames = min(_BLOCK, entry.frames - begin)
                rows = slice(entry.first + begin, entry.first + begin + frames)
                values[rows] = _block(target, wave, begin, frames)
            values.flush()
            with self._done.open("r+b") as file:
                file.seek(index)
                file.write(b"\1")

    def values(self, mode: str = "r") -> np.memmap[tuple[int, ...], np.dtype[np.float16]]:
        """The values, [frames of all files, bins]."""
        shape = (self._corpus.frames, self._settings.bins)
        return np.memmap(self._values, np.float16, mode, shape=shape)  # type: ignore[call-overload,no-any-return]


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _publish(path: Path, content: bytes) -> None:
    """Write a file aside and rename it: one that is there is whole."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _allocate(file: BinaryIO, size: int) -> None:
    """Give a file its bytes now: on a disk that is full later, writing into the mapped file ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def fill_together(
    file: CqtFile, processes: Processes, stopping: Callable[[], bool], notify: Callable[[TrainingProgress], None]
) -> None:
    """Compute what a file lacks, shared between the processes; all wait for each other."""
    if processes.first:
        file.make()
    processes.wait()
    missing = file.missing()
    processes.wait()
    share = missing[processes.rank :: processes.count]
    for number, index in enumerate(share):
        if stopping():
            break
        notify(TrainingProgress(stage="targets", done=number, total=len(share)))
        file.fill([index])
    processes.wait()


def _block(target: CqtTarget, wave: Tensor, begin: int, frames: int) -> npt.NDArray[np.float16]:
    """Magnitudes of some frames of a file; what is beyond its ends is silence."""
    hop = target.layout.hop
    # The longest kernel reaches half its length to either side; the filters of the lower octaves a little farther.
    reach = -(-int(target.transform.lengths.max() * 0.75 + 4096) // hop)
    first = max(0, begin - reach)
    piece = wave[first * hop : (begin + frames + reach) * hop]
    out = target(piece[None], frames, (begin - first) * hop)
    values: npt.NDArray[np.float16] = out[0].clamp(max=6e4).numpy().astype(np.float16)
    return values
