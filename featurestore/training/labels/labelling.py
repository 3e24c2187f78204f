"""From a store to files of labels: fit, assign, write."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore._version import __version__
from featurestore.atomic import replacing
from featurestore.audio.lists import Listed, read_list
from featurestore.audio.sources import listed_ids
from featurestore.errors import SettingError, SourceError, TrackNotFoundError
from featurestore.store import StoreReader
from featurestore.training.labels.frames import count_frames, frame_rate_of, track_frames
from featurestore.training.labels.kmeans import check_settings, fit_kmeans
from featurestore.training.labels.kmeans_model import KMeansModel, of_layer
from featurestore.training.labels.tokens import NAME, SPLITS, check_length, seconds

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the number of tracks that were read, and how many there are to read, those of each pass counted."""


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """Tells what was written.

    Attributes
    ----------
    out : Path
        Folder of the labels.
    name : str
        What they are called: ``train.<name>``, ``dict.<name>.txt``.
    fit : Path
        The fit: the one that was made, or given.
    layer, clusters : int
    files : dict of str to int
        Files of each split.
    labels : dict of str to int
        Labels of each split.
    used : int
        Clusters that are the label of at least one frame.
    perplexity : float
        Of the distribution of labels: that of `clusters` labels would be as uneven if this many were used equally.
    inertia : float
        Mean squared distance of a frame to its centre.

    Examples
    --------
    >>> from featurestore.training.labels import label_store
    >>> _ = build("music", "spectra.zarr", model="logmel", layers=[0], feature_level="all")
    >>> report = label_store("spectra.zarr", "labels", manifest="data", layer=0, clusters=20, passes=1)
    >>> report.files, report.labels
    ({'train': 2, 'valid': 1}, {'train': 1798, 'valid': 899})
    """

    out: Path
    name: str
    fit: Path
    layer: int
    clusters: int
    files: dict[str, int]
    labels: dict[str, int]
    used: int
    perplexity: float
    inertia: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values.

        Examples
        --------
        >>> from featurestore.training.labels import label_store
        >>> _ = build("music", "spectra.zarr", model="logmel", layers=[0], feature_level="all")
        >>> report = label_store("spectra.zarr", "labels", manifest="data", layer=0, clusters=20, passes=1)
        >>> report.to_dict()["clusters"]
        20
        """
        return {**self.__dict__, "out": str(self.out), "fit": str(self.fit)}


@dataclass(frozen=True)
class _Line:
    """A file of a manifest, and its track."""

    file: Listed
    track_id: str


def label_store(
    store: str | os.PathLike[str] | StoreReader,
    out: str | os.PathLike[str],
    *,
    layer: int | None = None,
    clusters: int = 500,
    manifest: str | os.PathLike[str] | None = None,
    name: str = "km",
    fit: str | os.PathLike[str] | None = None,
    seed: int = 0,
    batch_size: int = 10_000,
    fraction: float = 1.0,
    passes: int = 5,
    dataset: str | None = None,
    id_from: str = "path",
    progress: Progress | None = None,
) -> LabelReport:
    """Write labels of frames: the cluster of k-means that the stored features of one layer belong to.

    Writes ``train.km``, ``valid.km`` (if there is a ``valid.tsv``), ``dict.km.txt`` and, unless one is given, the
    fit, ``fit.km.npz``. Tracks are read one window at a time.

    Parameters
    ----------
    store : path or StoreReader
        With raw features of all files of the manifests.
    out : path
        Folder of the labels.
    layer : int
        Which; may be left out where a fit is given.
    clusters : int
        How many labels there are, where no fit is given.
    manifest : path, optional
        Folder of ``train.tsv`` and ``valid.tsv``; by default `out`. The fit is of ``train.tsv``.
    name : str
        Call the files ``train.<name>`` and so on, for labels of several teachers in one folder.
    fit : path, optional
        A fit of another run, instead of a new one.
    seed, batch_size, passes
        As for `fit_kmeans`.
    fraction : float
        Share of the tracks of ``train.tsv`` that is fitted, in (0, 1].
    dataset, id_from
        As the store was built with.
    progress : callable, optional
        Called with the number of tracks that were read, and how many there are to read.

    Returns
    -------
    LabelReport

    Raises
    ------
    SourceError
        If a manifest is missing or has a mistake, labels do not last as long as their file, or `fit` is none.
    SpecMismatchError
        If the fit is of other features.
    TrackNotFoundError
        If the store lacks tracks of the manifests, or their raw features.
    SettingError
        If a setting is impossible.
    MissingDependencyError
        If there is something to fit, and scikit-learn is not installed.
    StoreAccessError
        If the files cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from featurestore.training.labels import label_store
    >>> _ = build("music", "spectra.zarr", model="logmel", layers=[0], feature_level="all")
    >>> report = label_store("spectra.zarr", "labels", manifest="data", layer=0, clusters=20)
    >>> sorted(path.name for path in Path("labels").iterdir())
    ['dict.km.txt', 'fit.km.npz', 'train.km', 'valid.km']
    """
    opened = store if isinstance(store, StoreReader) else StoreReader(os.fspath(store))
    out = Path(out)
    folder = out if manifest is None else Path(manifest)
    _check_name(name)
    if not 0 < fraction <= 1:
        raise SettingError(f"`fraction` must be above 0 and at most 1, not {fraction}")
    fit_path = Path(fit) if fit is not None else out / f"fit.{name}.npz"
    found = None
    if fit is not None:
        found = KMeansModel.load(Path(fit))
        found.check(opened.spec)
        if layer not in (None, found.layer):
            raise SettingError(f"the fit {fit} is of layer {found.layer}, not {layer}: leave out `layer`")
        layer = found.layer
    if layer is None:
        raise SettingError("`layer` must be given, unless a `fit` is")
    settings = {"clusters": clusters, "seed": seed, "batch_size": batch_size, "passes": passes}
    if found is None:
        check_settings(**settings)
    splits = {split: _lines(opened, folder / f"{split}.tsv", layer, dataset, id_from) for split in _splits(folder)}
    fitted = [] if found else _chosen([line.track_id for line in splits["train"]], fraction, seed)
    tell = _Counted(progress, sum(map(len, splits.values())) + passes * len(fitted))
    if found is None:
        found = _fit(opened, fitted, layer, settings, tell)
        found.details["fraction"] = fraction
    return _write(opened, found, fit_path, splits, out, name, tell, save_fit=fit is None)


class _Counted:
    """Counts calls, and tells of them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name == "tsv":  # train.tsv is the manifest
        raise SettingError(
            f"`name` must be of letters, digits, _ and -, such as logmel, and not tsv: not {name!r}"
        )


def _splits(folder: Path) -> list[str]:
    if not (folder / "train.tsv").is_file():
        raise SourceError(f"{folder} has no train.tsv: write one with fs-extract manifest, or name its folder")
    return [split for split in SPLITS if (folder / f"{split}.tsv").is_file()]


def _lines(store: StoreReader, path: Path, layer: int, dataset: str | None, id_from: str) -> list[_Line]:
    """Files of a manifest with their tracks, in its order; all are in the store, and as long as there."""
    files = read_list(path)
    ids = listed_ids(files, dataset=dataset, id_from=id_from)
    missing = [pair for pair in zip(files, ids, strict=True) if not store.has(pair[1], ("raw",))]
    if missing:
        file, track_id = missing[0]
        what = "no raw features" if track_id in store else "no track"
        raise TrackNotFoundError(
            f"the store {store.path} has {what} of {len(missing)} of the {len(files)} files of {path}, the first "
            f"{track_id!r} (line {file.line}): build them, with `feature_level='all'`, or write the manifest again"
        )
    lines = []
    for file, track_id in zip(files, ids, strict=True):
        rate = (store.provenance(track_id).get("audio") or {}).get("sample_rate")
        if not rate:
            raise SourceError(f"the store {store.path} does not say what the sample rate of {track_id!r} was")
        where = f"line {file.line} of {path}: the store {store.path}"
        have = count_frames(store, track_id, layer)
        check_length(where, file.relative, seconds(file, rate), have, frame_rate_of(store))
        lines.append(_Line(file, track_id))
    return lines


def _chosen(track_ids: Sequence[str], fraction: float, seed: int) -> list[str]:
    """A share of the tracks, at least one: the same for the same tracks in any order."""
    shuffled = np.random.default_rng(seed).permutation(np.array(sorted(track_ids), dtype=object))
    return list(shuffled[: max(1, round(fraction * len(track_ids)))])


def _fit(
    store: StoreReader, tracks: Sequence[str], layer: int, settings: dict[str, int], tell: Callable[[], None]
) -> KMeansModel:
    def read(number: int) -> Iterator[npt.NDArray[np.float32]]:
        """All frames; the tracks in another order in each pass."""
        _log.info("fitting: pass %d of %d over %d tracks", number + 1, settings["passes"], len(tracks))
        for position in np.random.default_rng((settings["seed"], number)).permutation(len(tracks)):
            yield from track_frames(store, tracks[position], layer)
            tell()

    centers, frames = fit_kmeans(read, **settings)
    details = {**settings, "tracks": len(tracks), "frames": frames, "featurestore_version": __version__}
    return KMeansModel(centers=centers, spec=of_layer(store.spec, layer), details=details)


def _write(
    store: StoreReader,
    fit: KMeansModel,
    fit_path: Path,
    splits: dict[str, list[_Line]],
    out: Path,
    name: str,
    tell: Callable[[], None],
    *,
    save_fit: bool,
) -> LabelReport:
    clusters = len(fit.centers)
    counts = np.zeros(clusters, np.int64)
    labels: Counter[str] = Counter()
    distance = 0.0
    paths = [out / f"dict.{name}.txt", *(out / f"{split}.{name}" for split in reversed(splits))]
    # The fit is replaced together with the labels, so that it is always that of those.
    with replacing(*paths, *([fit_path] if save_fit else [])) as (dictionary, *files):
        if save_fit:
            files.pop().write(fit.content())
        dictionary.writelines(b"%d 1\n" % cluster for cluster in range(clusters))
        for file, (split, lines) in zip(files, reversed(splits.items()), strict=True):
            for line in lines:
                found = []
                for frames in track_frames(store, line.track_id, fit.layer):
                    found.append(fit.assign(frames))
                    distance += float(np.square(frames - fit.centers[found[-1]]).sum(dtype=np.float64))
                of_track = np.concatenate(found)
                file.write(" ".join(map(str, of_track.tolist())).encode() + b"\n")
                counts += np.bincount(of_track, minlength=clusters)
                labels[split] += len(of_track)
                tell()
    shares = counts[counts > 0] / counts.sum()
    return LabelReport(
        out=out,
        name=name,
        fit=fit_path,
        layer=fit.layer,
        clusters=clusters,
        files={split: len(lines) for split, lines in splits.items()},
        labels={split: labels[split] for split in splits},
        used=int((counts > 0).sum()),
        perplexity=float(np.exp(-(shares * np.log(shares)).sum())),
        inertia=distance / int(counts.sum()),
    )
