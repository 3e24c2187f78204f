"""A source written down once for many builds: which files it names, their ids, and how long they are."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.atomic import replacing
from featurestore.audio import AudioFile, AudioInfo, discover, read_header
from featurestore.audio.lists import GUESSED, SECONDS
from featurestore.errors import FeatureStoreError, SettingError
from featurestore.pipeline.prefetch import map_in_threads
from featurestore.pipeline.report import Failure


@dataclass(frozen=True, kw_only=True)
class SourceList:
    """Tells what was written.

    Attributes
    ----------
    path : str
        The list.
    tracks : int
        Its lines.
    audio_hours : float
        The length of all files, as far as they say it.
    guessed : int
        Files whose length is a guess, or unknown.
    errors : tuple of Failure
        Files that cannot be used. They are in the list all the same, so that each build names its own.
    """

    path: str
    tracks: int
    audio_hours: float
    guessed: int
    errors: tuple[Failure, ...] = ()


def write_source_list(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    id_from: str = "path",
    file_pattern: str | None = None,
    exclude: Sequence[str] = (),
    dataset: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SourceList:
    """Walk through a source and look at the header of each file, once for all builds of the list that is written.

    Parameters
    ----------
    source : path-like
        As in `featurestore.audio.discover`.
    out : path-like
        A file that ends in ``.csv``: track_id, path (absolute), audio_seconds, and audio_seconds_guessed where the
        file does not state it. `build` takes it as its source.
    id_from, file_pattern, exclude, dataset
        As in `featurestore.audio.discover`.
    progress : callable, optional
        Called with the number of files looked at, and of all.

    Raises
    ------
    SettingError
        If `out` is no name of such a list.
    SourceError
        If the source is not there, names no audio, or gives two files one id.
    StoreAccessError
        If the list cannot be written.

    Examples
    --------
    >>> from featurestore.pipeline import write_source_list
    >>> written = write_source_list("music", "plan.csv")
    >>> written.tracks, f"{written.audio_hours * 3600:.0f} s"
    (3, '30 s')
    >>> build("plan.csv", "spectra.zarr", model="logmel").processed
    3
    """
    target = Path(out)
    if target.suffix.lower() != ".csv":
        raise SettingError(f"a list of tracks is a .csv, such as plan.csv, and not {str(out)!r}")
    tracks = discover(source, id_from=id_from, file_pattern=file_pattern, exclude=exclude, dataset=dataset)
    found = map_in_threads(_header, tracks, lambda done: progress(done, len(tracks)) if progress else None)
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["track_id", "path", SECONDS, GUESSED])
    errors, hours, guessed = [], 0.0, 0
    for track, info in zip(tracks, found, strict=True):
        stated = about = None
        if isinstance(info, Exception):
            name = type(info).__name__
            errors.append(Failure(track_id=track.track_id, path=str(track.path), error=name, message=str(info)))
        elif info.frames is None:
            about, guessed = info.duration, guessed + 1
        else:
            stated = info.duration
        hours += (stated or about or 0.0) / 3600
        rows.writerow([track.track_id, os.path.abspath(track.path), stated, about])
    with replacing(target) as (file,):
        file.write(os.fsencode(text.getvalue()))  # names that are not UTF-8 stay as they are
    return SourceList(
        path=str(target), tracks=len(tracks), audio_hours=hours, guessed=guessed, errors=tuple(errors)
    )


def _header(track: AudioFile) -> AudioInfo | FeatureStoreError | OSError:
    """What the header of a file says, or what is wrong with it."""
    try:
        return read_header(track.path)
    except (FeatureStoreError, OSError) as error:
        return error
