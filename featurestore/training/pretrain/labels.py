"""Labels of frames: tokens of codebooks as fairseq writes them, and dense arrays of known ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import SourceError
from featurestore.training.labels.tokens import read_lines


def read_tokens(
    folder: Path, split: str, name: str, entries: Sequence[Any], layout: Any, classes: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Tokens of all files, one line each.

    Parameters
    ----------
    folder, split, name
        As in `featurestore.training.labels.read_labels`.
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
    files = [(entry.path, entry.samples / layout.rate) for entry in entries]
    total = entries[-1].first + entries[-1].frames
    tokens = np.zeros(total, np.uint16 if classes <= 1 << 16 else np.int32)
    counts = np.zeros(len(entries), np.int64)
    for number, found in enumerate(read_lines(folder, split, name, files, layout.rate / layout.hop, classes)):
        entry = entries[number]
        counts[number] = len(found)
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
