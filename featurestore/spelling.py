"""Names of paths that are there, for those that are not: mistyped, or of the same letters in other bytes.

Bytes are those of composed letters (NFC), or of decomposed ones (NFD) as macOS writes them.

Unicode Standard Annex 15, https://www.unicode.org/reports/tr15/. Nobody sees the difference on a screen, and most
file systems take the two for different names.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import unicodedata
from collections import defaultdict
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path

_MOST_NAMES = 10_000
"""Names of a folder among which a mistyped one is looked for."""


def letters(name: str) -> str:
    """What is the same for all normalisations of a name."""
    return unicodedata.normalize("NFC", name)


def other_spelling(path: str | os.PathLike[str]) -> str | None:
    """Path of the same letters that is there, for one that is not; None if there is none.

    Any of its parts may be written in another normalisation than the disk has.
    """
    path = os.fspath(path)
    if path.isascii():
        return None
    found = ["/" if path.startswith("/") else ""]
    for part in filter(None, path.split("/")):
        found = [os.path.join(folder, name) for folder in found for name in _spelled(folder or ".", part)]
    return next((x for x in found if x != path and os.path.lexists(x)), None)


def spelling_hint(path: str | os.PathLike[str]) -> str:
    """What a message that a path is not there should add: that the same letters are, or nothing."""
    other = other_spelling(path)
    return "" if other is None else describe_spelling(os.fspath(path), other)


def close_hint(path: str | os.PathLike[str]) -> str:
    """The same, or else which path that is there may be meant: for one path that somebody has typed.

    Examples
    --------
    >>> from featurestore.spelling import close_hint
    >>> close_hint("musik/rock")
    " (did you mean 'music/rock'?)"
    """
    if hint := spelling_hint(path):
        return hint
    close = _close_path(Path(path))
    return "" if close is None else f" (did you mean {close!r}?)"


def _close_path(path: Path) -> str | None:
    """Path that is there, and differs from one that is not in a single part, by little."""
    missing = next((x for x in (*reversed(path.parents), path) if not os.path.lexists(x)), None)
    if missing is None:
        return None
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(missing.parent) as entries:
        names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    rest = path.relative_to(missing)
    meant = (missing.parent / name / rest for name in difflib.get_close_matches(missing.name, sorted(names)))
    return next((os.fspath(x) for x in meant if os.path.lexists(x)), None)


def describe_spelling(given: str, there: str) -> str:
    """How a path that is there differs from the one that was given, for the end of a message.

    Of names that look the same, those are shown that differ, letters beyond ASCII as escapes.
    """
    both = _parts(given), _parts(there)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False))))
    # The rest of a pattern may have more or fewer parts than that of a path.
    ours, theirs = (next((part for part in parts[same:] if not part.isascii()), "") for parts in both)
    return (
        f"; but {there!r} is there, which looks the same: it has {theirs!a} ({_normalisation(theirs)} of "
        f"Unicode), and not {ours!a} ({_normalisation(ours)}): give it as it is written there, or rename it"
    )


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _normalisation(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "a mixture")


def _spelled(folder: str, part: str) -> list[str]:
    """The names in a folder that have the letters of a part."""
    if part.isascii():
        return [part]
    try:
        changed = os.stat(folder).st_mtime_ns
        return _names(os.path.abspath(folder), changed).get(letters(part), [])
    except (OSError, ValueError):
        return []


@lru_cache(maxsize=16)
def _names(folder: str, changed: int) -> dict[str, list[str]]:  # noqa: ARG001 - another list after a change
    """Names of a folder by their letters: a list of 100,000 files that are not there reads it once."""
    found = defaultdict(list)
    for name in sorted(os.listdir(folder)):
        if not name.isascii():
            found[letters(name)].append(name)
    return dict(found)
