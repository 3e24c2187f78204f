"""Searching directories, following links but no loops of links, and skipping what is hidden."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from featurestore.errors import SourceError

_BOOKKEEPING = frozenset(
    ("__MACOSX", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
"""Folders of archives, network disks and systems: resource forks, previews, and what was thrown away."""

_MOST_VISITS = 100
"""Ways by which one directory may be reached: links among n directories make n! of them."""


def has_wildcard(path: str) -> bool:
    """Whether a path is a pattern."""
    return re.search(r"[*?[]", path) is not None


def split_glob(pattern: str) -> tuple[str, list[str]]:
    """The part of a pattern before its first wildcard, a directory, and the parts from there on."""
    parts = pattern.replace(os.sep, "/").split("/")
    first = next(i for i, part in enumerate(parts) if has_wildcard(part))
    prefix = "/".join(parts[:first])
    rest = posixpath.normpath("/".join(parts[first:]))
    return prefix or ("/" if first else "."), [part for part in rest.split("/") if part != "."]


def search(
    root: str, parts: Sequence[str], is_audio: Callable[[str], bool], spelled: Callable[[str], str] = str
) -> Iterator[str]:
    """Paths of the audio files that a pattern matches, or that lie below a directory that it matches.

    They are relative to the root, each comes once, in an order that depends on the names only, and directories
    that cannot be read are among them. The parts of a pattern, of which there may be none, are names, names with
    ``*``, ``?`` and ``[...]``, which do not match a leading dot, or ``**`` for directories to any depth. Names and
    parts are compared as `spelled` writes them.

    SourceError is raised if the root cannot be read, or links lead around in more ways than anyone would list.
    """
    visits: Counter[tuple[int, int]] = Counter()
    waiting = [("", _begun({0}, parts), frozenset[tuple[int, int]]())]
    while waiting:
        relative, begun, above = waiting.pop()
        path = os.path.join(root, relative)
        try:
            status = os.stat(path)
            with os.scandir(path) as entries:
                names = sorted((e.name, _is_directory(e)) for e in entries)
        except OSError as error:
            if relative:
                yield relative
            elif os.path.isdir(root):
                raise SourceError(f"the directory {root!r} cannot be read: {error.strerror}") from None
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue  # a link to a directory that holds it
        visits[identity] += 1
        if visits[identity] > _MOST_VISITS:
            raise SourceError(
                f"links lead to {path!r} in more than {_MOST_VISITS} ways: remove links that point into {root!r}, "
                "or give a list of the files"
            )
        below = []
        for name, is_directory in names:
            matched = {i for i in begun if (i == len(parts) or parts[i] == "**") and not _is_hidden(name)}
            matched |= {i + 1 for i in begun if i < len(parts) and _matches(name, parts[i], spelled)}
            matched = _begun(matched, parts)
            if is_directory and matched:
                below.append((os.path.join(relative, name), matched, above | {identity}))
            elif len(parts) in matched and is_audio(name):
                yield os.path.join(relative, name)
        waiting.extend(reversed(below))


def _begun(numbers: set[int], parts: Sequence[str]) -> set[int]:
    """Numbers of the parts that may match next; ``**`` may match nothing."""
    begun = set(numbers)
    for i, part in enumerate(parts):
        if i in begun and part == "**":
            begun.add(i + 1)
    return begun


def _matches(name: str, part: str, spelled: Callable[[str], str]) -> bool:
    shown = not _is_hidden(name) or name == part or name[0] == part[0] == "."
    return part != "**" and shown and fnmatchcase(spelled(name), spelled(part))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _BOOKKEEPING


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
