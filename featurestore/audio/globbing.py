"""Searching directories, following links but no loops of links, and skipping what is hidden."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from featurestore.errors import SourceError
from featurestore.spelling import letters

_BOOKKEEPING = frozenset(
    ("__MACOSX", "@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
"""Folders of archives, network disks and systems: resource forks, previews, and what was thrown away."""

_MOST_VISITS = 100
"""Ways by which one directory may be reached: links among n directories make n! of them."""

IsAudio = Callable[[str], bool]


def walk(root: str, is_audio: IsAudio) -> Iterator[str]:
    """Paths of the audio files under a directory, relative to it, and of directories that cannot be read.

    Parameters
    ----------
    root : str
        The directory.
    is_audio : callable of str to bool
        Whether a file of this name is audio.

    Yields
    ------
    str
        In an order that depends on the names only.

    Raises
    ------
    SourceError
        If the directory cannot be read, or links lead around in it in more ways than anyone would list.
    """
    try:
        os.scandir(root).close()
    except OSError as error:
        raise SourceError(f"the directory {root!r} cannot be read: {error.strerror}") from None
    yield from _search(root, is_audio)


def _search(root: str, is_audio: IsAudio) -> Iterator[str]:
    """The same, "" for the directory itself if it cannot be read."""
    for directory, files in _directories(root):
        if files is None:
            yield directory
        else:
            yield from (os.path.join(directory, name) for name in files if is_audio(name))


def has_wildcard(path: str) -> bool:
    """Whether a path is a pattern."""
    return re.search(r"[*?[]", path) is not None


def split_glob(pattern: str) -> tuple[str, list[str]]:
    """The part of a pattern before its first wildcard, a directory, and the parts from there on."""
    parts = pattern.replace(os.sep, "/").split("/")
    first = next(i for i, part in enumerate(parts) if has_wildcard(part))
    prefix = "/".join(parts[:first])
    return prefix or ("/" if first else "."), [part for part in parts[first:] if part not in ("", ".")]


def match_glob(prefix: str, parts: list[str], is_audio: IsAudio, *, any_spelling: bool = False) -> Iterator[str]:
    """Paths of the audio files that a pattern matches, or that lie under the directories it matches.

    Directories that cannot be read are among them.

    Parameters
    ----------
    prefix : str
        Directory in which the pattern is looked for.
    parts : list of str
        Parts of the pattern: names, or names with ``*``, ``?`` and ``[...]``, which do not match a leading dot, or
        ``**`` for directories to any depth, none included. Case counts.
    is_audio : callable of str to bool
        Whether a file of this name is audio.
    any_spelling : bool
        Whether letters match in any normalisation of Unicode.

    Yields
    ------
    str
        Relative to the prefix, each once.
    """
    matches = [""]
    for part in parts:
        found = (x for match in matches for x in _match_part(prefix, match, part, any_spelling=any_spelling))
        matches = list(dict.fromkeys(found))
    seen: set[str] = set()
    for match in matches:
        path = os.path.join(prefix, match)
        if os.path.isdir(path):
            files: Iterator[str] = (os.path.join(match, x) if x else match for x in _search(path, is_audio))
        else:
            files = iter([match] if is_audio(os.path.basename(match)) else [])
        for relative in files:
            if relative not in seen:
                seen.add(relative)
                yield relative


def _match_part(prefix: str, match: str, part: str, *, any_spelling: bool) -> Iterator[str]:
    path = os.path.join(prefix, match)
    spelled = letters if any_spelling else str
    if part == "**":
        if os.path.isdir(path):
            yield from (os.path.join(match, x) if x else match for x, _ in _directories(path))
    elif has_wildcard(part) or (any_spelling and part != ".."):
        try:
            names = sorted(os.listdir(path))
        except OSError:  # not a directory, below which nothing matches, or one that cannot be read
            if os.path.isdir(path):
                yield match
            return
        for name in names:
            hidden = _is_hidden(name) and part != name and not (name[0] == part[0] == ".")
            if fnmatchcase(spelled(name), spelled(part)) and not hidden:
                yield os.path.join(match, name)
    elif os.path.lexists(os.path.join(path, part)):
        yield os.path.join(match, part)


def _directories(root: str) -> Iterator[tuple[str, list[str] | None]]:
    """Directories under a root, itself first as "", with the names of their files, None where they cannot be read.

    Hidden ones are left out.
    """
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    visits: Counter[tuple[int, int]] = Counter()
    while waiting:
        relative, above = waiting.pop()
        path = os.path.join(root, relative)
        try:
            status = os.stat(path)
            with os.scandir(path) as entries:
                names = sorted((e.name, _is_directory(e)) for e in entries if not _is_hidden(e.name))
        except OSError:
            yield relative, None
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
        yield relative, [name for name, is_directory in names if not is_directory]
        waiting.extend(
            (os.path.join(relative, name), above | {identity})
            for name, is_directory in reversed(names)
            if is_directory
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _BOOKKEEPING


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
