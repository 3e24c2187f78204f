"""Labels of frames: tokens of codebooks as fairseq writes them, and dense arrays of known ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import SourceError
from featurestore.labels.tokens import TOLERANCE


def read_tokens(
    path: Path, entries: Sequence[Any], layout: Any, classes: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Tokens of all files, one line each.

    Parameters
    ----------
    path : Path
        ``train.<name>``.
    entries : sequence of Entry
        Files of the manifest.
    layout : Frames
        Of the model.
    classes : int
        Tokens are below.

    Returns
    -------
    tokens : ndarray of uint16 or int32, shape (frames of all files,)
        0 where a file has fewer tokens than frames.
    counts : ndarray of int64, shape (files,)
        Tokens of each.

    Raises
    ------
    SourceError
        If the file is missing, or a line has no numbers, tokens beyond the codebook, or another count than its
        file has frames.
    """
    lines = _lines(path)
    if len(lines) != len(entries):
        raise SourceError(f"{path} has {len(lines)} lines, but its manifest names {len(entries)} files")
    total = entries[-1].first + entries[-1].frames
    tokens = np.zeros(total, np.uint16 if classes <= 1 << 16 else np.int32)
    counts = np.zeros(len(entries), np.int64)
    for number, (line, entry) in enumerate(zip(lines, entries, strict=True), 1):
        try:
            found = np.array(line.split(), np.int32)
        except (ValueError, OverflowError):
            raise SourceError(f"line {number} of {path} is not a list of tokens") from None
        seconds = entry.samples / layout.rate
        if abs(len(found) * layout.hop / layout.rate - seconds) > TOLERANCE:
            per_second = len(found) / seconds
            raise SourceError(
                f"line {number} of {path} has {len(found)} labels for {seconds:.2f} s of {entry.path}: "
                f"{per_second:.1f} per second, but the model makes {layout.rate / layout.hop:g} frames per second"
            )
        if len(found) and not 0 <= found.min() <= found.max() < classes:
            wrong = found.max() if found.max() >= classes else found.min()
            raise SourceError(f"line {number} of {path} has the token {wrong}, but the codebook has {classes}")
        counts[number - 1] = len(found)
        kept = found[: entry.frames]
        tokens[entry.first : entry.first + len(kept)] = kept
    return tokens, counts


def read_dense(path: Path, frames: int, manifest: Path) -> npt.NDArray[np.uint8]:
    """Labels of all frames of all files, mapped into memory.

    Returns
    -------
    ndarray of uint8, shape (frames, classes)

    Raises
    ------
    SourceError
        If the file is missing or is another array.
    """
    try:
        labels: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise SourceError(f"the labels {path} are missing; the recipe names them") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"the labels {path} cannot be read: {error}") from None
    if labels.ndim != 2 or labels.dtype != np.uint8 or not labels.shape[1]:
        raise SourceError(
            f"{path} must be uint8 of shape (frames, classes), not {labels.dtype} of shape {labels.shape}"
        )
    if len(labels) != frames:
        raise SourceError(f"{path} has {len(labels)} frames, but the files of {manifest} have {frames} together")
    return labels


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise SourceError(f"the labels {path} are missing; the recipe names them") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"the labels {path} cannot be read: {error}") from None
    return text.removesuffix("\n").split("\n") if text else []
