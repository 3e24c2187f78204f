"""Files of labels as fairseq's HuBERT reads them: a line of whole numbers for each file of a manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featurestore.audio import read_header
from featurestore.audio.lists import Listed, read_list
from featurestore.errors import SettingError, SourceError

TOLERANCE = 0.1
"""Seconds by which a file and its labels may differ, as in fairseq's HuBERT: a frame or two are always missing."""

SPLITS = ("train", "valid")

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What labels may be called."""


def label_file(folder: Path, split: str, name: str) -> Path:
    """Where the labels of a name are: ``train.<name>``, as fairseq has it, or ``train.<name>.km``."""
    plain, longer = folder / f"{split}.{name}", folder / f"{split}.{name}.km"
    return longer if longer.is_file() and not plain.is_file() else plain


def dictionary_file(folder: Path, name: str) -> Path:
    """Where the dictionary of a name is: ``dict.<name>.txt``, or ``dict.<name>.km.txt``."""
    plain, longer = folder / f"dict.{name}.txt", folder / f"dict.{name}.km.txt"
    return longer if longer.is_file() and not plain.is_file() else plain


def read_dictionary(path: Path) -> int:
    """Read the number of classes of a dictionary of ``token count`` lines with the tokens 0, 1, ... in order.

    Raises
    ------
    SourceError
        If there is no such file, or it is another; the message names the line.

    Examples
    --------
    >>> from pathlib import Path
    >>> from featurestore.training.labels import read_dictionary
    >>> read_dictionary(Path("data", "dict.km.txt"))
    4
    """
    classes = 0
    for number, line in _lines(path):
        token, _, count = line.partition(" ")
        if token != str(classes) or not (count.strip().isascii() and count.strip().isdecimal()):
            raise SourceError(
                f"line {number} of {path} must be {f'{classes} COUNT'!r}, not {line!r}: tokens are whole numbers "
                "from 0, in order"
            )
        classes += 1
    if not classes:
        raise SourceError(f"{path} holds no token")
    return classes


def read_labels(
    folder: Path, split: str, name: str, *, sample_rate: int | None = 24_000, frame_rate: float = 75.0
) -> list[npt.NDArray[np.int32]]:
    """Read the labels of the files of a manifest: of `label_store`, or tokens of a codec made elsewhere.

    Parameters
    ----------
    folder : Path
        Holds ``<split>.tsv``, ``<split>.<name>`` (or ``<split>.<name>.km``) and, perhaps, ``dict.<name>.txt``.
    split : str
        "train" or "valid".
    name : str
        "km", or "encodec_0", ...
    sample_rate : int, optional
        Hz, of the samples that the manifest counts; None for each file's own, which is looked up in it.
    frame_rate : float
        Labels a second.

    Returns
    -------
    list of ndarray of int32, shape (labels,)
        In the order of the manifest.

    Raises
    ------
    SourceError
        If a file is missing, a line holds no whole numbers or one beyond the dictionary, there are more or fewer
        lines than files, or labels last longer or shorter than their file by more than `TOLERANCE`. The message
        names the line.

    Examples
    --------
    >>> from pathlib import Path
    >>> from featurestore.training.labels import read_labels
    >>> labels = read_labels(Path("data"), "train", "km")
    >>> len(labels), labels[0].shape, labels[0].dtype
    (2, (900,), dtype('int32'))
    """
    dictionary = dictionary_file(folder, name)
    files = [(file.relative, seconds(file, sample_rate)) for file in read_list(folder / f"{split}.tsv")]
    classes = read_dictionary(dictionary) if dictionary.exists() else None
    return list(read_lines(folder, split, name, files, frame_rate, classes))


def read_lines(
    folder: Path,
    split: str,
    name: str,
    files: Sequence[tuple[str, float]],
    frame_rate: float,
    classes: int | None,
) -> Iterator[npt.NDArray[np.int32]]:
    """Labels of each file, checked as `read_labels` says.

    Parameters
    ----------
    folder, split, name
        As there.
    files : sequence of (str, float)
        How errors call a file of the manifest, and its seconds.
    frame_rate : float
        Labels a second.
    classes : int, optional
        Of the dictionary.
    """
    path, manifest, dictionary = (
        label_file(folder, split, name),
        folder / f"{split}.tsv",
        dictionary_file(folder, name),
    )
    number = 0
    for number, line in _lines(path):
        if number > len(files):
            raise SourceError(f"line {number} of {path} is of no file: {manifest} has {len(files)} files")
        found = _parsed(path, number, line)
        if len(found) and (found.min() < 0 or (classes is not None and found.max() >= classes)):
            wrong = found.min() if found.min() < 0 else found.max()
            raise SourceError(f"line {number} of {path} has the label {wrong}, which {dictionary} has not")
        check_length(f"line {number} of {path}", *files[number - 1], len(found), frame_rate)
        yield found
    if number < len(files):
        raise SourceError(
            f"{path} ends after line {number}, but {manifest} has {len(files)} files: line {number + 1} is to be "
            f"that of {files[number][0]!r}"
        )


def check_length(where: str, name: str, seconds: float, labels: int, frame_rate: float) -> None:
    """Raise SourceError if so many labels are not as long as the file of this name."""
    if abs(labels / frame_rate - seconds) > TOLERANCE:
        rate = labels / seconds if seconds else math.inf
        raise SourceError(
            f"{where} has {labels} labels for the {seconds:.2f} s of {name!r}, {rate:.2f} a second, "
            f"not {frame_rate:g}: they were made at another rate, or of another file"
        )


def seconds(file: Listed, sample_rate: float | None) -> float:
    """Length of a file of a manifest, whose own rate is looked up if it is not given."""
    if file.samples is None:
        raise SettingError("labels belong to the files of a manifest (.tsv)")
    return file.samples / (read_header(file.path).sample_rate if sample_rate is None else sample_rate)


def _parsed(path: Path, number: int, line: str) -> npt.NDArray[np.int32]:
    try:
        # int() would take 1_0 and digits of other scripts.
        if not line.isascii() or "_" in line:
            raise ValueError
        return np.array([int(word) for word in line.split()], np.int32)
    except (ValueError, OverflowError):
        raise SourceError(f"line {number} of {path} is not a line of whole numbers: {line[:60]!r}") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, one at a time."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\n")
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not text") from None
    except OSError as error:
        raise SourceError(f"the labels {path} cannot be read: {error.strerror}") from None
