"""Which audio files a source names, and the id of each."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from featurestore.addresses import local_path
from featurestore.audio.globbing import has_wildcard, match_glob, split_glob, walk
from featurestore.audio.info import quoted
from featurestore.audio.lists import LIST_SUFFIXES, Listed, other_list, read_list
from featurestore.audio.opening import SUFFIXES
from featurestore.errors import SettingError, SourceError
from featurestore.spelling import describe_spelling, letters, other_spelling, spelling_hint

_COLLISIONS_SHOWN = 3

_A_LIST = (
    "give a .txt with a path per line, a playlist (.m3u, .m3u8), a .csv with columns track_id and path, or a "
    "manifest of fairseq (.tsv)"
)


@dataclass(frozen=True)
class AudioFile:
    """A file and the track that its features will be.

    Attributes
    ----------
    track_id : str
        Valid unicode, unique within a source.
    path : Path
        The file; whether it can be read shows when it is.
    """

    track_id: str
    path: Path


@dataclass(frozen=True)
class _Named:
    """A file, its path relative to what the source names, and the id that a list gives it."""

    relative: str
    path: str
    own_id: str | None = None


def discover(
    source: str | os.PathLike[str],
    *,
    id_from: str = "path",
    file_pattern: str | None = None,
    dataset: str | None = None,
) -> list[AudioFile]:
    """Find the audio files that a source names.

    Parameters
    ----------
    source : path-like
        One of: a directory, searched to its depths for the suffixes of audio files, in any case; a file; a
        pattern with ``*``, ``?``, ``[...]`` or ``**``, which finds files with these suffixes and directories,
        searched likewise; a list: ``.txt`` with a path per line, ``.m3u`` or ``.m3u8`` as players write them,
        ``.csv`` with columns track_id and path, or ``.tsv`` as fairseq's manifests (the root, then a relative
        path, a tab and a number of samples per line). Relative paths of a list start at the list, those of a
        manifest at its root.
        Searches follow links and skip names that begin with a dot, and folders that systems make for themselves:
        ``__MACOSX``, ``@eaDir``, ``lost+found``, and those of what was deleted.
    id_from : {"path", "stem"}
        Track ids are the relative path without suffix (relative to the directory, to the part of a pattern before
        its first wildcard, or as in the list; the stem of a lone file), or only its last part. A csv's own ids
        stay.
    file_pattern : str, optional
        Only files whose name matches, such as ``*.wav``, in any case and normalisation of Unicode.
    dataset : str, optional
        Put before every id, with a slash.

    Returns
    -------
    list of AudioFile
        At least one, sorted by track id. Files that cannot be read, or that a list names and that are missing,
        and links that lead nowhere are among them: they fail one by one when they are read.

    Raises
    ------
    SourceError
        If the source is not there, names no audio, is a list with a mistake, or gives two files one id.
    SettingError
        If a setting is impossible.
    """
    if not isinstance(source, str | os.PathLike):
        raise SettingError(f"source must be one path, not {source!r:.200}; give several files as a list (.txt)")
    if file_pattern is not None and (not isinstance(file_pattern, str) or not file_pattern or "/" in file_pattern):
        raise SettingError(
            f"`file_pattern` must match names of files, such as *.wav, and not be {file_pattern!r}; "
            "give a pattern of paths as the source"
        )
    prefix = _checked_prefix(id_from, dataset)
    try:
        path = local_path(source)
    except ValueError as error:
        raise SourceError(f"the source {os.fspath(source)} is {error}") from None
    named = _named(path, file_pattern)
    files = [AudioFile(prefix + _track_id(x, id_from), Path(x.path)) for x in named]
    files.sort(key=lambda file: (file.track_id, os.fspath(file.path)))
    _check_unique(files, id_from)
    return files


def listed_ids(files: Sequence[Listed], *, id_from: str = "path", dataset: str | None = None) -> list[str]:
    """The ids that `discover` gives the files of a list, in their order, wherever the files are.

    Raises
    ------
    SourceError, SettingError
        As `discover`.
    """
    prefix = _checked_prefix(id_from, dataset)
    ids = [prefix + _track_id(_Named(x.relative, x.path, x.track_id), id_from) for x in files]
    found = [AudioFile(track_id, Path(x.path)) for track_id, x in zip(ids, files, strict=True)]
    _check_unique(sorted(found, key=lambda file: file.track_id), id_from)
    return ids


def _checked_prefix(id_from: str, dataset: str | None) -> str:
    """What is put before every id."""
    if id_from not in ("path", "stem"):
        raise SettingError(f'`id_from` must be "path" or "stem", not {id_from!r}')
    if dataset is not None and not (isinstance(dataset, str) and dataset.strip("/")):
        raise SettingError(f"`dataset` must be a name, not {dataset!r}")
    return "" if dataset is None else dataset.strip("/") + "/"


def _named(source: str, file_pattern: str | None) -> list[_Named]:
    """The files that a source names, in no particular order; at least one."""
    searched = False

    def is_audio(name: str) -> bool:
        return _matches(name, file_pattern) and _has_audio_suffix(name)

    if os.path.isdir(source):
        searched = True
        named = [_Named(x, os.path.join(source, x)) for x in walk(source, is_audio)]
    elif os.path.lexists(source):
        if os.path.splitext(source)[1].lower() in LIST_SUFFIXES:
            named = [_Named(x.relative, x.path, x.track_id) for x in read_list(Path(source), root_is_there=True)]
        elif (suffix := other_list(os.path.basename(source))) is not None and os.path.isfile(source):
            raise SourceError(
                f"the source {source!r} is no audio file, and no list of {suffix} is read: {_A_LIST}"
            )
        else:
            named = [_Named(os.path.basename(source), source)]
    elif has_wildcard(source):
        searched = True
        prefix, parts = split_glob(source)
        named = [_Named(x, os.path.join(prefix, x)) for x in match_glob(prefix, parts, is_audio)]
    else:
        raise SourceError(
            f"the source {source!r} is not there{spelling_hint(source)}: give a directory, an audio file, a "
            f"pattern such as 'music/*.wav', or a list ({', '.join(LIST_SUFFIXES)})"
        )
    if not searched:
        named = [x for x in named if _matches(os.path.basename(x.relative), file_pattern)]
    if not named:
        raise SourceError(_nothing_found(source, file_pattern, searched=searched))
    return named


def _matches(name: str, file_pattern: str | None) -> bool:
    return file_pattern is None or fnmatch(letters(name).lower(), letters(file_pattern).lower())


def _nothing_found(source: str, file_pattern: str | None, *, searched: bool) -> str:
    matching = f" whose name matches {file_pattern!r}" if file_pattern is not None else ""
    if not searched:
        return f"the source {source!r} names no file{matching}"
    other = "" if os.path.exists(source) else _spelled_otherwise(source)
    suffixes = ", ".join(sorted(SUFFIXES))
    return f"the source {source!r} holds no audio file{matching}; looked for {suffixes}{other}"


def _spelled_otherwise(pattern: str) -> str:
    """What a message adds if a pattern would match but for the normalisation of its letters."""
    if pattern.isascii():
        return ""
    prefix, parts = split_glob(pattern)
    folder = prefix if os.path.isdir(prefix) else other_spelling(prefix)
    if folder is None:
        return ""
    found = match_glob(folder, parts, _has_audio_suffix, any_spelling=True)
    first = next(found, None)
    return "" if first is None else describe_spelling(pattern, os.path.join(folder, first))


def _has_audio_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _track_id(named: _Named, id_from: str) -> str:
    if named.own_id is not None:
        return _unicode(named.own_id)
    without_suffix = posixpath.splitext(named.relative.replace(os.sep, "/"))[0]
    return _unicode(posixpath.basename(without_suffix) if id_from == "stem" else without_suffix)


def _unicode(name: str) -> str:
    r"""The name with every byte that is not UTF-8 written as ``\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _check_unique(files: list[AudioFile], id_from: str) -> None:
    """Raise SourceError if two of the files, sorted by id, share one."""
    pairs = list(_collisions(files))
    if not pairs:
        return
    lines = [
        f"  {a.track_id}: {quoted(a.path)} " + (f"and {quoted(b.path)}" if a.path != b.path else "is named twice")
        for a, b in pairs[:_COLLISIONS_SHOWN]
    ]
    if len(pairs) > _COLLISIONS_SHOWN:
        lines.append(f"  ... and {len(pairs) - _COLLISIONS_SHOWN} more")
    hint = 'take ids from whole paths (`id_from="path"`), ' if id_from == "stem" else ""
    raise SourceError(
        "files share a track id, and would overwrite each other:\n"
        + "\n".join(lines)
        + f"\n{hint}choose files by name (`file_pattern='*.wav'`), or give a .csv list with columns track_id "
        "and path"
    )


def _collisions(files: list[AudioFile]) -> Iterator[tuple[AudioFile, AudioFile]]:
    for a, b in itertools.pairwise(files):
        if a.track_id == b.track_id:
            yield a, b
