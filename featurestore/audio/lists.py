"""Lists of audio files: lines of paths, tables with ids, and fairseq's manifests."""

from __future__ import annotations

import csv
import io
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.audio.info import quoted
from featurestore.errors import SourceError

LIST_SUFFIXES = (".txt", ".csv", ".tsv")

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Listed:
    """A file of a list.

    Attributes
    ----------
    relative : str
        Its path as in the list, normalised, without the slash of an absolute one.
    path : str
        Where it is.
    track_id : str or None
        The id that the list gives it.
    line : int
        Where in the list it stands, from 1.
    samples : int or None
        Its length at its own rate, as a manifest says it.
    """

    relative: str
    path: str
    track_id: str | None = None
    line: int = 0
    samples: int | None = None


def read_list(path: Path) -> list[Listed]:
    """Files that a list names.

    Parameters
    ----------
    path : Path
        The list, of UTF-8 or of names in any bytes; its suffix tells its kind.

    Returns
    -------
    list of Listed
        In the order of the list; the files need not be there.

    Raises
    ------
    SourceError
        If the list cannot be read, names no file, or has a mistake; the message tells the line.
    """
    try:
        if not path.is_file():
            raise SourceError(f"the list {quoted(path)} is not a file")
        # The bytes of names that are not UTF-8 must come back when the file is opened.
        text = os.fsdecode(path.read_bytes().removeprefix(_BOM))
    except OSError as error:
        raise SourceError(f"the list {quoted(path)} cannot be read: {error.strerror}") from None
    if "\0" in text and path.suffix.lower() != ".csv":  # whose ids may be anything
        raise SourceError(f"the list {quoted(path)} is no text: it holds NUL bytes")
    read = {".txt": _read_lines, ".csv": _read_table, ".tsv": _read_manifest}[path.suffix.lower()]
    listed = list(read(path, text))
    if not listed:
        raise SourceError(f"the list {quoted(path)} names no file")
    return listed


def _read_lines(path: Path, text: str) -> Iterator[Listed]:
    for number, line in _lines(text):
        yield _listed(path, number, path.parent, line)


def _read_table(path: Path, text: str) -> Iterator[Listed]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = rows.fieldnames or []
        if not {"track_id", "path"} <= set(columns):
            raise SourceError(
                f"the list {quoted(path)} must begin with the header track_id,path, not {','.join(columns)!r}"
            )
        for row in rows:
            if not row["track_id"]:
                raise SourceError(f"line {rows.line_num} of {quoted(path)} has no track_id")
            yield _listed(path, rows.line_num, path.parent, row["path"] or "", row["track_id"])
    except csv.Error as error:
        raise SourceError(
            f"line {rows.reader.line_num} of {quoted(path)} is not comma-separated text: {error}"
        ) from None


def _read_manifest(path: Path, text: str) -> Iterator[Listed]:
    lines = _lines(text)
    root = path.parent / next(lines, (1, "."))[1]
    for number, line in lines:
        relative, tab, samples = line.rpartition("\t")
        if not tab or not samples.strip().isdecimal():
            raise SourceError(
                f"line {number} of {quoted(path)} is not that of a manifest: a relative path, a tab and a number "
                "of samples, below a first line with the root"
            )
        yield replace(_listed(path, number, root, relative), samples=int(samples))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    for number, line in enumerate(text.split("\n"), start=1):
        if (line := line.removesuffix("\r")).strip():
            yield number, line


def _listed(path: Path, number: int, root: Path, name: str, track_id: str | None = None) -> Listed:
    relative = posixpath.normpath(name.replace(os.sep, "/")).lstrip("/") if name else ""
    if relative in ("", "."):
        raise SourceError(f"line {number} of {quoted(path)} names no file: {name!r}")
    return Listed(relative, os.path.join(root, name), track_id, number)
