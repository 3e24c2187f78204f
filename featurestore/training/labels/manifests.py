"""Manifests of audio in fairseq's layout: ``train.tsv`` and ``valid.tsv``."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurestore.atomic import replacing
from featurestore.audio import count_samples, discover
from featurestore.audio.info import quoted
from featurestore.errors import AudioError, SettingError, SourceError
from featurestore.spelling import close_hint

_THREADS = 8
"""Threads that read headers: their time is waiting, on network file systems above all."""


@dataclass(frozen=True, kw_only=True)
class ManifestReport:
    """Tells what was written.

    Attributes
    ----------
    out : Path
        Folder of the manifests.
    train, valid : int
        Files in each.
    hours : float
        Hours of audio in both.
    sample_rates : dict of int to int
        Files of each rate, Hz.
    errors : list of (path, message)
        Files that are left out, since they cannot be read or are too short.

    Examples
    --------
    >>> from featurestore.training.labels import write_manifests
    >>> report = write_manifests("music", "manifests", valid=0.3)
    >>> report.train, report.valid, report.sample_rates
    (2, 1, {24000: 3})
    """

    out: Path
    train: int
    valid: int
    hours: float
    sample_rates: dict[int, int] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values.

        Examples
        --------
        >>> from featurestore.training.labels import write_manifests
        >>> write_manifests("music", "manifests").to_dict()["errors"]
        []
        """
        return {
            "out": str(self.out),
            "train": self.train,
            "valid": self.valid,
            "hours": self.hours,
            "sample_rates": {str(rate): count for rate, count in self.sample_rates.items()},
            "failed": len(self.errors),
            "errors": [{"path": path, "message": message} for path, message in self.errors],
        }


def write_manifests(
    audio: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    valid: float = 0.1,
    seed: int = 0,
    file_pattern: str | None = None,
    relative_root: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ManifestReport:
    """Write ``train.tsv`` and ``valid.tsv`` of a folder of audio.

    The first line is the folder, each other one a path below it, a tab, and the samples of the file at its own
    rate, sorted by path. They are counted in the header where the format states them exactly, or else by decoding.

    Parameters
    ----------
    audio : path
        Folder, searched as `featurestore.build` does.
    out : path
        Folder of the manifests; made if it does not exist.
    valid : float
        Share of the files that goes into ``valid.tsv``, in [0, 1). At least one file, if it is not 0.
    seed : int
        Of the split. Which files go where depends on their paths and the seed, not on the order of anything; a
        file that is added moves at most one other.
    file_pattern : str, optional
        Only files whose name matches, such as ``*.wav``.
    relative_root : bool
        Write the folder relative to `out`, so that both can be moved together, and not absolute, as fairseq
        needs it.
    progress : callable, optional
        Called with the number of files that were looked at, and of all.

    Returns
    -------
    ManifestReport

    Raises
    ------
    SourceError
        If `audio` is no folder, holds no audio or none that can be read, or a name holds a tab or a line break.
    SettingError
        If `valid` is impossible, or `out` holds labels that belong to other manifests.
    StoreAccessError
        If the files cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from featurestore.training.labels import write_manifests
    >>> report = write_manifests("music", "manifests", valid=0.3, relative_root=True)
    >>> Path("manifests", "train.tsv").read_text().split()
    ['../music', 'jazz/blue.wav', '288000', 'rock/song.wav', '288000']
    """
    if not 0 <= valid < 1:
        raise SettingError(f"`valid` must be at least 0 and below 1, not {valid}")
    folder, out = os.fspath(audio), Path(out)
    if not os.path.isdir(folder):
        raise SourceError(f"{folder!r} is not a folder{close_hint(folder)}: a manifest lists the audio below one")
    if not valid and (out / "valid.tsv").exists():
        raise SettingError(f"{out} has a valid.tsv of another split: remove it, or give another folder")
    real = os.path.realpath  # a link followed by ".." leads elsewhere than its path says
    root = os.path.relpath(real(folder), real(out)) if relative_root else os.path.abspath(folder)
    _check_name(root, "the folder")
    paths = sorted(os.path.relpath(file.path, folder) for file in discover(folder, file_pattern=file_pattern))
    for path in paths:
        _check_name(path, "the file")
    counted, errors = _count(folder, paths, progress)
    if not counted:
        raise SourceError(f"none of the {len(paths)} files of {folder!r} can be used; the first: {errors[0][1]}")
    held_out = _held_out(list(counted), valid, seed)
    splits = {
        "valid": [path for path in counted if path in held_out],
        "train": [path for path in counted if path not in held_out],
    }
    if not splits["train"]:
        raise SourceError(f"{folder!r} has one usable file, and none is left for train.tsv: give `valid=0`")
    # train.tsv last: where it is, the other one is of the same split.
    written = {name: names for name, names in splits.items() if names}
    lines = {name: [os.fsencode(x) + b"\t%d\n" % counted[x][0] for x in names] for name, names in written.items()}
    for name in written:
        _check_labels(out, name, lines[name])
    with replacing(*(out / f"{name}.tsv" for name in written)) as files:
        for file, name in zip(files, written, strict=True):
            file.write(os.fsencode(root) + b"\n")
            file.writelines(lines[name])
    return ManifestReport(
        out=out,
        train=len(splits["train"]),
        valid=len(splits["valid"]),
        hours=sum(samples / rate for samples, rate in counted.values()) / 3600,
        sample_rates=dict(sorted(Counter(rate for _, rate in counted.values()).items())),
        errors=errors,
    )


def _check_labels(out: Path, split: str, lines: list[bytes]) -> None:
    """Raise SettingError if there are labels of other files than those of these lines."""
    manifest = out / f"{split}.tsv"
    if not manifest.is_file() or manifest.read_bytes().splitlines(keepends=True)[1:] == lines:
        return
    # Spectra have the digest of their files in their names.
    others = [x.name for x in out.glob(f"{split}.*") if x != manifest and not x.name.startswith(f"{split}.cqt-")]
    if others:
        raise SettingError(
            f"{out} has labels of the files that {manifest.name} lists now ({', '.join(sorted(others)[:3])}), "
            "not of these: remove them, or give another folder"
        )


def _check_name(name: str, what: str) -> None:
    if any(character in name for character in "\t\n\r"):
        raise SourceError(
            f"{what} {quoted(name)} has a tab or a line break in its name, which a manifest cannot hold: rename it"
        )


def _count(
    folder: str, paths: Sequence[str], progress: Callable[[int, int], None] | None
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]]]:
    """Samples and rate of each file, in the order of the paths, and what is wrong with the others."""

    def look_at(path: str) -> tuple[int, int] | str:
        try:
            return count_samples(os.path.join(folder, path))
        except AudioError as error:
            return str(error)

    counted, errors = {}, []
    pool = ThreadPoolExecutor(min(_THREADS, len(paths)), thread_name_prefix="featurestore-manifest")
    try:
        for done, (path, found) in enumerate(zip(paths, pool.map(look_at, paths), strict=True), 1):
            if isinstance(found, str):
                errors.append((path, found))
            else:
                counted[path] = found
            if progress is not None:
                progress(done, len(paths))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return counted, errors


def _held_out(paths: Sequence[str], share: float, seed: int) -> set[str]:
    """The files of ``valid.tsv``: those whose digests come first."""
    count = max(1, min(round(share * len(paths)), len(paths) - 1)) if share else 0

    def digest(path: str) -> bytes:
        return hashlib.sha256(b"%d\0" % seed + os.fsencode(path)).digest()

    return set(sorted(paths, key=digest)[:count])
