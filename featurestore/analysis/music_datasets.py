"""Labels of published data sets, through mirdata: nothing is downloaded here."""

from __future__ import annotations

import difflib
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.errors import MissingDependencyError, SettingError
from featurestore.spelling import letters

PREFIX = "mirdata:"
"""What labels of a data set begin with: ``mirdata:NAME``, or ``mirdata:NAME:FOLDER``."""


class DatasetLabels(Mapping[str, npt.NDArray[Any]]):
    """What a data set of mirdata says of some of its tracks; each column is read when it is asked for."""

    def __init__(self, name: str, dataset: Any, ids: Sequence[str]) -> None:
        self._name, self._dataset = name, dataset
        self._tracks = [dataset.track(dataset_id) for dataset_id in ids]

    def __getitem__(self, label: str) -> npt.NDArray[Any]:
        first = self._tracks[0]
        if label.startswith("_") or not (label in vars(first) or hasattr(type(first), label)):
            if label == "split":
                return self._splits()
            raise KeyError(label)
        values = []
        for track in self._tracks:
            with reading(self._name, self._dataset, f"{label} of {track.track_id!r:.200}"):
                values.append(getattr(track, label))
            if not _is_label(values[-1]):
                raise SettingError(
                    f"{label!r} of {self._name} is no text and no number, but a {type(values[-1]).__name__}: make "
                    "labels of it, and give those as a mapping"
                )
        return np.array(values)

    def _splits(self) -> npt.NDArray[Any]:
        """The first of several splits that a data set has, where tracks do not have one each."""
        try:
            with reading(self._name, self._dataset, "its splits"):
                splits = self._dataset.get_track_splits()
        except NotImplementedError:
            raise KeyError("split") from None
        part_of = {dataset_id: part for part, ids in splits.items() for dataset_id in ids}
        return np.array([part_of.get(track.track_id) for track in self._tracks])

    def __iter__(self) -> Iterator[str]:
        """Names of what is text or a number of the first track."""
        for label in dir(self._tracks[0]):
            if label.startswith("_") or label == "track_id" or "audio" in label or "path" in label:
                continue
            try:
                value = getattr(self._tracks[0], label)
            except Exception:  # whatever annotations raise that are not there; who asks for them is told
                continue
            if _is_label(value):
                yield label

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _is_label(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | np.generic)


def find_tracks(name: str, track_ids: Iterable[str]) -> tuple[Any, dict[str, Any]]:
    """Open the data set of a name, and find tracks in it: the ids that they have there, by ours.

    The id of a track is the path of its audio, without suffix, below any folder of the data set, or its id in the
    data set; all may have one prefix before it.

    Raises
    ------
    SettingError
        If there is no such data set, its index is not there, or it has none of the tracks.
    MissingDependencyError
        If mirdata is not installed.
    """
    chosen, _, folder = name.removeprefix(PREFIX).partition(":")
    mirdata = _import_mirdata(name)
    if chosen not in mirdata.list_datasets():
        close = difflib.get_close_matches(chosen, mirdata.list_datasets(), n=3)
        hint = f": did you mean {' or '.join(PREFIX + other for other in close)}?" if close else ""
        raise SettingError(f"mirdata has no data set {chosen!r}{hint} (`mirdata.list_datasets()` names them)")
    try:
        dataset = mirdata.initialize(chosen, data_home=os.path.expanduser(folder) or None)
    except (ImportError, KeyError) as error:
        raise MissingDependencyError(
            f"mirdata cannot open {chosen} ({error}): perhaps after pip install 'mirdata[{chosen}]'"
        ) from error
    with reading(name, dataset, "its index"):
        tracks = [dataset.track(dataset_id) for dataset_id in dataset.track_ids]
    paths = {track.track_id: [_relative(path, dataset) for path in _audio_paths(track)] for track in tracks}
    found = match(track_ids, paths)
    if not found:
        example = next((path for below in paths.values() for path in below), next(iter(paths), ""))
        raise SettingError(
            f"none of the tracks is in {name}: their ids are compared with paths of its audio, such as "
            f"{example!r}, and with their ends"
        )
    return dataset, found


def match(track_ids: Iterable[str], paths: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Find out which tracks are which of a data set, whose `paths` without suffix are by its ids.

    A track is one of the data set if its end is the end of a path of that one alone; what is before it is the same
    for all.
    """
    owners: dict[str, set[str]] = {}
    for dataset_id, some in paths.items():
        for end in {dataset_id, *(end for path in some for end in _ends(path))}:
            owners.setdefault(letters(end), set()).add(dataset_id)
    found: dict[str, tuple[str, str]] = {}
    for track_id in track_ids:
        for end in _ends(track_id):
            if len(owner := owners.get(letters(end), set())) == 1:
                found[track_id] = track_id.removesuffix(end), next(iter(owner))
                break
    if not found:
        return {}
    prefix = Counter(before for before, _ in found.values()).most_common(1)[0][0]
    return {track_id: owner for track_id, (before, owner) in found.items() if before == prefix}


def _ends(path: str) -> Iterator[str]:
    """A path, and what is left of it without its first folders."""
    while True:
        yield path
        _, slash, path = path.partition("/")
        if not slash:
            return


def _audio_paths(track: Any) -> Iterator[str]:
    for label, value in vars(track).items():
        if "audio" in label and "path" in label and isinstance(value, str):
            yield value


def _relative(path: str, dataset: Any) -> str:
    return posixpath.splitext(os.path.relpath(path, dataset.data_home).replace(os.sep, "/"))[0]


@contextmanager
def reading(name: str, dataset: Any, what: str) -> Iterator[None]:
    """Errors of mirdata say what to download."""
    try:
        yield
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        remotes = ", ".join(dataset.remotes or {})
        some = f"['index'] or those of {remotes} that hold annotations" if remotes else "['index']"
        raise SettingError(
            f"{what} cannot be read, of {name}: {error}. If it was not downloaded, `mirdata.initialize("
            f"{dataset.name!r}, data_home={dataset.data_home!r}).download(parts)` does it, with the parts {some}; "
            f"audio is not needed. If it is elsewhere, say '{PREFIX}{dataset.name}:FOLDER'"
        ) from error


def _import_mirdata(name: str) -> ModuleType:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    try:
        import mirdata
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs mirdata: pip install 'featurestore[mirdata]'") from error
    finally:  # it sets up the logging of whoever imports it
        root.level, root.handlers[:] = before
    module: ModuleType = mirdata
    return module
