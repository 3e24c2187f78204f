"""Which audio files a source names, and the id of each."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from featurestore.addresses import local_path
from featurestore.audio.globbing import has_wildcard, search, split_glob
from featurestore.audio.info import quoted
from featurestore.audio.lists import LIST_SUFFIXES, Listed, other_list, read_list
from featurestore.choices import ID_FROM
from featurestore.errors import SettingError, SourceError
from featurestore.spelling import close_hint, describe_spelling, letters, other_spelling

_NAMES = """
3gp 8svx aac ac3 aif aifc aiff amr ape au bwf caf dsf dts eac3 flac iff ircam m4a m4b mka mkv mov mp1 mp2 mp3 mp4
mpc nist oga ogg opus rf64 sf snd sph spx svx tak tta voc w64 wav wave weba webm wma wv
"""
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
"""Suffixes of the files that are looked for in folders, lower case."""

_COLLISIONS_SHOWN = 3


@dataclass(frozen=True)
class AudioFile:
    """A file and the track that its features will be.

    Attributes
    ----------
    track_id : str
        Valid unicode, unique within a source.
    path : Path
        The file; whether it can be read shows when it is.
    seconds : float or None
        Its length, if a list says it.
    guessed : bool
        Whether that is a guess.
    """

    track_id: str
    path: Path
    seconds: float | None = None
    guessed: bool = False


def discover(
    source: str | os.PathLike[str],
    *,
    id_from: str = "path",
    file_pattern: str | None = None,
    exclude: Sequence[str] = (),
    dataset: str | None = None,
    excluded: list[str] | None = None,
) -> list[AudioFile]:
    """Find the audio files that a source names.

    Parameters
    ----------
    source : path-like
        One of: a directory, searched to its depths for the suffixes of audio files, in any case; a file; a
        pattern with ``*``, ``?``, ``[...]`` or ``**``, which finds files with these suffixes and directories,
        searched likewise; a list: ``.txt`` with a path per line, ``.m3u`` or ``.m3u8`` as players write them,
        ``.csv`` with columns track_id, path and perhaps audio_seconds, or ``.tsv`` as fairseq's manifests (the
        root, then a relative path, a tab and a number of samples per line). Relative paths of a list start at the
        list, those of a manifest at its root.
        Searches follow links and skip names that begin with a dot, and folders that systems make for themselves:
        ``__MACOSX``, ``@eaDir``, ``lost+found``, and those of what was deleted.
    id_from : {"path", "stem"}
        Track ids are the relative path without suffix (relative to the directory, to the part of a pattern before
        its first wildcard, or as in the list; the stem of a lone file), or only its last part. A csv's own ids
        stay.
    file_pattern : str, optional
        Only files whose name matches, such as ``*.wav``, in any case and normalisation of Unicode.
    exclude : sequence of str
        No files whose name, or path as in the id, matches one of these patterns.
    dataset : str, optional
        Put before every id, with a slash.
    excluded : list of str, optional
        Gets the paths that `exclude` leaves out, as in the id.

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
    try:
        path = local_path(source)
    except ValueError as error:
        raise SourceError(f"the source {os.fspath(source)} is {error}") from None
    if (
        isinstance(exclude, str)
        or not isinstance(exclude, Collection)
        or not all(isinstance(x, str) and x for x in exclude)
    ):
        raise SettingError(f"`exclude` is a sequence of patterns, not {exclude!r:.200}")
    found = _named(path, file_pattern)
    named = [x for x in found if not _is_excluded(x.relative, exclude)]
    if excluded is not None and len(named) < len(found):
        excluded += sorted({x.relative for x in found} - {x.relative for x in named})
    if not named:
        raise SourceError(f"the source {path!r} names no file but those that `exclude` leaves out")
    return sorted(_with_ids(named, id_from, dataset), key=lambda file: file.track_id)


def listed_ids(files: Sequence[Listed], *, id_from: str = "path", dataset: str | None = None) -> list[str]:
    """The ids that `discover` gives the files of a list, in their order, wherever the files are; errors as its."""
    return [file.track_id for file in _with_ids(files, id_from, dataset)]


def _named(source: str, file_pattern: str | None) -> list[Listed]:
    """The files that a source names, in no particular order; at least one."""

    def matches(name: str) -> bool:
        return file_pattern is None or fnmatch(letters(name).lower(), letters(file_pattern).lower())

    def is_audio(name: str) -> bool:
        return matches(name) and _has_audio_suffix(name)

    matching = f" whose name matches {file_pattern!r}" if file_pattern is not None else ""
    if (is_folder := os.path.isdir(source)) or (not os.path.lexists(source) and has_wildcard(source)):
        root, parts = (source, []) if is_folder else split_glob(source)
        if found := [Listed(x, os.path.join(root, x)) for x in search(root, parts, is_audio)]:
            return found
        raise SourceError(
            f"the source {source!r} holds no audio file{matching}; looked for {', '.join(sorted(SUFFIXES))}"
            + (_spelled_otherwise(source, root, parts) or close_hint(root))
        )
    if not os.path.lexists(source):
        raise SourceError(
            f"the source {source!r} is not there{close_hint(source)}: give a directory, an audio file, a "
            f"pattern such as 'music/*.wav', or a list ({', '.join(LIST_SUFFIXES)})"
        )
    found = [Listed(os.path.basename(source), source)]
    if os.path.splitext(source)[1].lower() in LIST_SUFFIXES:
        found = read_list(Path(source), root_is_there=True)
    elif (suffix := other_list(os.path.basename(source))) is not None and os.path.isfile(source):
        raise SourceError(
            f"the source {source!r} is no audio file, and no list of {suffix} is read: give a .txt with a path "
            "per line, a playlist (.m3u, .m3u8), a .csv with columns track_id and path, or a manifest of fairseq "
            "(.tsv)"
        )
    if found := [x for x in found if matches(os.path.basename(x.relative))]:
        return found
    raise SourceError(f"the source {source!r} names no file{matching}")


def _is_excluded(relative: str, patterns: Sequence[str]) -> bool:
    names = [letters(relative).lower(), letters(os.path.basename(relative)).lower()]
    return any(fnmatch(name, letters(pattern).lower()) for name in names for pattern in patterns)


def _spelled_otherwise(pattern: str, root: str, parts: list[str]) -> str:
    """What a message adds if a pattern would match but for the normalisation of its letters."""
    folder = root if os.path.isdir(root) else other_spelling(root)
    if pattern.isascii() or folder is None:
        return ""
    first = next(search(folder, parts, _has_audio_suffix, letters), None)
    return "" if first is None else describe_spelling(pattern, os.path.join(folder, first))


def _has_audio_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _with_ids(files: Sequence[Listed], id_from: str, dataset: str | None) -> list[AudioFile]:
    """The files with the id of each, in their order."""
    if id_from not in ID_FROM:
        raise SettingError(f'`id_from` must be "path" or "stem", not {id_from!r}')
    prefix = id_prefix(dataset)
    found = []
    for file in files:
        name = posixpath.splitext(file.relative.replace(os.sep, "/"))[0]
        if file.track_id is not None:
            name = file.track_id
        elif id_from == "stem":
            name = posixpath.basename(name)
        # Bytes that are not UTF-8 are written as \xff.
        track_id = prefix + os.fsencode(name).decode("utf-8", "backslashreplace")
        found.append(AudioFile(track_id, Path(file.path), file.seconds, file.guessed))
    _check_unique(found, id_from)
    return found


def id_prefix(dataset: str | None) -> str:
    """What the ids of a data set begin with; SettingError if it has no name."""
    if dataset is not None and not (isinstance(dataset, str) and dataset.strip("/")):
        raise SettingError(f"`dataset` must be a name, not {dataset!r}")
    return "" if dataset is None else dataset.strip("/") + "/"


def _check_unique(files: list[AudioFile], id_from: str) -> None:
    files = sorted(files, key=lambda file: (file.track_id, os.fspath(file.path)))
    pairs = [(a, b) for a, b in itertools.pairwise(files) if a.track_id == b.track_id]
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
