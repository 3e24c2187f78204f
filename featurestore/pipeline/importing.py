"""Features that another program has extracted, taken into a store as if they had been built."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.audio import discover, read_header
from featurestore.audio.sources import id_prefix
from featurestore.errors import SettingError, SourceError
from featurestore.sharing.files import import_npy, npy_tracks
from featurestore.spec import FeatureSpec
from featurestore.store import StoreWriter
from featurestore.windows import hop_samples, window_samples, window_starts


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Tells what an import did.

    Attributes
    ----------
    imported, there : int
        Tracks that are new in the store, and that it had before.
    without_audio : tuple of str
        Ids of new tracks of which no audio is known: a build extracts them again.
    """

    imported: int
    there: int
    without_audio: tuple[str, ...]


def import_tree(
    tree: str | os.PathLike[str],
    store: str | Path,
    *,
    model: str | Path,
    audio: str | os.PathLike[str] | None = None,
    segment_duration: float | str = "auto",
    overlap: float | None = None,
    layers: Sequence[int] | None = None,
    precision: str = "fp32",
    dataset: str | None = None,
    id_from: str = "path",
    notify: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Take a tree of ``raw/ID.npy``, ``segments/ID.npy`` and ``aggregated/ID.npy`` into a store, bit for bit.

    With `audio`, a build of the same settings counts the tracks as there. Tracks that the store has are left
    alone, so an import that was interrupted goes on.

    Parameters
    ----------
    tree : path-like
        The folder; a track may have some of the three arrays.
    store : str or Path
        The store; made if it does not exist.
    model : str or Path
        What the features were computed with, as in `featurestore.build`.
    audio : path-like, optional
        The source whose tracks these are, as in `featurestore.build`.
    segment_duration, overlap, layers
        How the features were made, as in `featurestore.build`.
    precision : {"fp32", "fp16", "bf16"}
        The arithmetic that they were computed in.
    dataset : str, optional
        Prefix of the ids, as in `featurestore.build`; the paths of the arrays do not have it.
    id_from : {"path", "stem"}
        How the audio's ids are made, which are the paths of the arrays in the tree.
    notify : callable, optional
        Called with the tracks done and all.

    Raises
    ------
    SourceError
        If the tree holds no such arrays.
    SettingError
        If an array is not of these layers and windows.
    SpecMismatchError
        If the store holds features of other settings.
    """
    from featurestore.encode import WindowEncoder

    folder = Path(tree)
    ids = npy_tracks(folder)
    if not ids:
        raise SourceError(f"{folder} has no raw, segments or aggregated with files of .npy")
    files = {} if audio is None else {found.track_id: found.path for found in discover(audio, id_from=id_from)}
    prefix = id_prefix(dataset)
    if audio is not None and not files.keys() & set(ids):
        raise SourceError(
            f"no track of {folder} is in {audio}: the first ids are {ids[0]!r:.200} and "
            f"{min(files, default='')!r:.200}; `id_from='stem'` makes ids of names alone"
        )
    encoder = WindowEncoder(model=model, segment_duration=segment_duration, overlap=overlap, layers=layers)
    spec = replace(encoder.spec(), precision=precision)
    there, without_audio = 0, []
    with StoreWriter(store, spec=spec) as writer:
        for number, name in enumerate(ids, 1):
            track_id = prefix + name
            if writer.existing(track_id) is not None:
                there += 1
            else:
                _import_track(writer, track_id, folder, name, files.get(name))
                if name not in files:
                    without_audio.append(track_id)
            if notify is not None:
                notify(number, len(ids))
        writer.pack(wait=60.0)
    return ImportReport(imported=len(ids) - there, there=there, without_audio=tuple(without_audio))


def _import_track(writer: StoreWriter, track_id: str, folder: Path, name: str, audio: Path | None) -> None:
    arrays = import_npy(folder, name, len(writer.spec.layers), writer.spec.dim)
    rows = arrays.get("raw", arrays.get("segments"))
    starts = None
    if audio is not None and rows is not None:
        duration = read_header(audio).duration
        starts = None if not duration else _starts(writer.spec, len(rows), duration, f"{name!r} of {folder}")
    writer.put(track_id, arrays, starts=starts, audio=audio, attributes={"imported_from": str(folder)})


def _starts(spec: FeatureSpec, count: int, duration: float, what: str) -> list[float] | None:
    """Where so many windows of a track start, seconds."""
    rate = spec.sample_rate
    if rate is None or not isinstance(spec.segment_duration, int | float):
        return None
    window = window_samples(spec.segment_duration, rate)
    hop = hop_samples(window, spec.overlap or 0.0)
    found = window_starts(max(1, round(duration * rate)), window, hop)
    # Other programs leave out what is left after the last whole window.
    if count not in (len(found), len(found) - 1):
        raise SettingError(
            f"{what} has {count} windows, and {duration:.1f} s of audio have {len(found)} of "
            f"{spec.segment_duration} s with overlap {spec.overlap}: give `segment_duration` and `overlap` as "
            "they were, or leave out `audio`"
        )
    return [float(start) / rate for start in found[:count]]
