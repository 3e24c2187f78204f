"""Lists of audio files: lines of paths, playlists, tables with ids, and fairseq's manifests."""

from __future__ import annotations

import codecs
import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

from featurestore.audio.info import quoted
from featurestore.errors import SourceError
from featurestore.spelling import spelling_hint

SECONDS, GUESSED = "audio_seconds", "audio_seconds_guessed"
"""The columns of a table that say how long the audio is, or about how long, so that nobody needs to look."""

LIST_SUFFIXES = (".txt", ".m3u", ".m3u8", ".csv", ".tsv")

_OTHER_LISTS = """
.json .jsonl .ndjson .yaml .yml .toml .ini .xml .md .text .lst .list .scp .pls .xspf .cue .wpl .asx .b4s .zpl .tab
.psv .xls .xlsx .ods .csv.gz .tsv.gz .txt.gz .json.gz .jsonl.gz .parquet .feather .arrow .pkl .pickle .npy .npz .h5
.hdf5 .db .sqlite
"""
"""Suffixes of lists and tables that others read: a source of this name is not one file of audio."""

_FILE = re.compile(r"file:(//(localhost)?(?=/)|(?=/[^/]))", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://|file:", re.IGNORECASE)


@dataclass(frozen=True)
class Listed:
    """A file of a list: its path there, normalised and without a leading slash, and where it is.

    A table gives an id and perhaps seconds, a manifest the samples at the file's own rate; lines count from 1.
    """

    relative: str
    path: str
    track_id: str | None = None
    line: int = 0
    samples: int | None = None
    seconds: float | None = None
    guessed: bool = False


def other_list(name: str) -> str | None:
    """The suffix of a list that is not understood, None for a name of anything else."""
    return next((suffix for suffix in _OTHER_LISTS.split() if name.lower().endswith(suffix)), None)


def read_list(path: Path, *, root_is_there: bool = False) -> list[Listed]:
    """Files that a list names, in its order; its suffix tells its kind.

    They need not be there, but with `root_is_there` the root of a manifest has to be a folder of this machine. A
    list is UTF-8, or its names are any bytes. SourceError is raised if it cannot be read, names no file, or has a
    mistake; the message tells the line.
    """
    try:
        if not path.is_file():
            raise SourceError(f"the list {quoted(path)} is not a file")
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"the list {quoted(path)} cannot be read: {error.strerror}") from None
    suffix = path.suffix.lower()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceError(f"the list {quoted(path)} is UTF-16: save it as UTF-8")
    if b"\0" in content and suffix != ".csv":  # whose ids may be anything
        raise SourceError(f"the list {quoted(path)} is no text: it holds NUL bytes")
    # The bytes of names that are not UTF-8 must come back when the file is opened.
    text = os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    if suffix == ".csv":
        listed = list(_read_table(path, text))
    elif suffix == ".tsv":
        listed = list(_read_manifest(path, text, root_is_there=root_is_there))
    elif suffix == ".txt":
        listed = [_listed(path, number, path.parent, line) for number, line in _lines(text)]
    else:
        listed = list(_read_playlist(path, text))
    if not listed:
        raise SourceError(f"the list {quoted(path)} names no file")
    return listed


def _read_playlist(path: Path, text: str) -> Iterator[Listed]:
    """Lines of a playlist as players write them: ``#`` begins a comment, and ``file:`` an address."""
    for number, line in _lines(text):
        if line.startswith("#EXT-X-"):
            raise SourceError(
                f"{quoted(path)} is the playlist of one stream in pieces (HLS), no list of tracks: download the "
                "stream, and give the file"
            )
        if line.startswith("#"):
            continue
        if file := _FILE.match(line):
            name = os.fsdecode(unquote_to_bytes(os.fsencode(line[file.end() :].rstrip())))
        elif _URL.match(line):
            what = f"is an address, {line!r}, and no file of this machine: download it, and list the file"
            raise _mistake(path, number, what)
        else:
            name = _as_on_disk(path.parent, line)
        yield _listed(path, number, path.parent, name)


def _as_on_disk(folder: Path, name: str) -> str:
    """The name of a playlist as the disk has it: players of Windows write its letters and slashes another way."""
    spellings = [name]
    if any("\udc80" <= letter <= "\udcff" for letter in name):  # no UTF-8
        try:
            spellings.insert(0, os.fsencode(name).decode("cp1252"))
        except UnicodeDecodeError:
            spellings.insert(0, os.fsencode(name).decode("latin-1"))
    spellings += [spelling.replace("\\", "/") for spelling in spellings]
    return next((x for x in spellings if os.path.lexists(folder / x)), spellings[0])


def _read_table(path: Path, text: str) -> Iterator[Listed]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = rows.fieldnames or []
        for wanted in ("track_id", "path"):
            alike = [column for column in columns if column.strip().lower() == wanted]
            if len(alike) > 1:
                raise SourceError(
                    f"the list {quoted(path)} has {len(alike)} columns {wanted} ({', '.join(map(repr, alike))}): "
                    "leave one of them, or give the others other names"
                )
        if not {"track_id", "path"} <= set(columns):
            raise SourceError(
                f"the list {quoted(path)} must begin with the header track_id,path, not {','.join(columns)!r}"
            )
        for row in rows:
            if any(row.get(None) or []):
                what = "has more fields than the header: put a path or id that holds a comma in double quotes"
                raise _mistake(path, rows.line_num, what)
            if not row["track_id"]:
                raise _mistake(path, rows.line_num, "has no track_id")
            listed = _listed(path, rows.line_num, path.parent, row["path"] or "", row["track_id"])
            stated, guessed = _seconds(row.get(SECONDS)), _seconds(row.get(GUESSED))
            yield replace(listed, seconds=stated or guessed, guessed=stated is None)
    except csv.Error as error:
        raise _mistake(path, rows.reader.line_num, f"is not comma-separated text: {error}") from None


def _seconds(text: str | None) -> float | None:
    """A length that can be one; None for what is anything else, as the column may be somebody else's."""
    if not text or "_" in text:  # which Python lets stand between digits
        return None
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < float("inf") else None


def _read_manifest(path: Path, text: str, *, root_is_there: bool) -> Iterator[Listed]:
    lines = _lines(text)
    number, name = next(lines, (1, ""))
    root = path.parent / name
    what = "must be the root of the manifest, the folder below which its paths are"
    if not name:
        raise SourceError(f"the list {quoted(path)} names no file: it is empty, without even a root")
    if "\t" in name:
        what += f", and is {name!r}: put a line with it before ('/' if paths are absolute)"
        raise _mistake(path, number, what)
    if root_is_there and not root.is_dir():
        what += f", but {quoted(root)} is not a folder here{spelling_hint(root)}"
        raise _mistake(path, number, what)
    for number, line in lines:
        relative, _, samples = line.rpartition("\t")
        if not samples.strip().isdecimal():
            what = "is not that of a manifest: a relative path, a tab and a number of samples, below the root"
            raise _mistake(path, number, what)
        yield replace(_listed(path, number, root, relative), samples=int(samples))


def _mistake(path: Path, number: int, what: str) -> SourceError:
    """An error that names the list and the line."""
    return SourceError(f"line {number} of {quoted(path)} {what}")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    for number, line in enumerate(text.split("\n"), start=1):
        if (line := line.removesuffix("\r")).strip():
            yield number, line


def _listed(path: Path, number: int, root: Path, name: str, track_id: str | None = None) -> Listed:
    relative = posixpath.normpath(name.replace(os.sep, "/")).lstrip("/") if name else ""
    if relative in ("", "."):
        raise _mistake(path, number, f"names no file: {name!r}")
    return Listed(relative, os.path.join(root, name), track_id, number)
