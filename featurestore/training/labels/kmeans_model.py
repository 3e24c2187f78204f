"""A fit of k-means: its centres, and which features they are centres of."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.atomic import replacing
from featurestore.errors import SourceError, SpecMismatchError
from featurestore.spec import FeatureSpec

_FORMAT = 1
_MOST_BYTES = 2**30
_ROWS = 8192
"""Frames whose distances are computed at a time."""


@dataclass(frozen=True, kw_only=True)
class KMeansModel:
    """Holds the centres of clusters of the frames of one layer.

    Attributes
    ----------
    centers : ndarray of float32, shape (clusters, feature)
    spec : FeatureSpec
        What identifies the features of the one layer.
    details : dict
        How it was fitted: seed, batch_size, passes, fraction, tracks, frames, inertia. Plain JSON values.

    Examples
    --------
    >>> from featurestore.training.labels import KMeansModel
    >>> spec = FeatureSpec.for_arrays(layers=[7], dim=3)
    >>> fit = KMeansModel(centers=np.eye(3, dtype=np.float32), spec=spec, details={})
    >>> fit.layer, fit.centers.shape
    (7, (3, 3))
    """

    centers: npt.NDArray[np.float32]
    spec: FeatureSpec
    details: dict[str, Any]

    @property
    def layer(self) -> int:
        """The layer."""
        return self.spec.layers[0]

    def assign(self, frames: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Find the nearest centre of each frame.

        Parameters
        ----------
        frames : ndarray of float32, shape (frames, feature)
            Frames of the layer.

        Returns
        -------
        ndarray of int64, shape (frames,)

        Examples
        --------
        >>> from featurestore.training.labels import KMeansModel
        >>> spec = FeatureSpec.for_arrays(layers=[7], dim=3)
        >>> fit = KMeansModel(centers=np.eye(3, dtype=np.float32), spec=spec, details={})
        >>> fit.assign(np.array([[0.1, 0.9, 0], [1, 0, 0]], np.float32))
        array([1, 0])
        """
        # |x - c|^2 without |x|^2, which is the same for all c.
        offsets = np.square(self.centers, dtype=np.float64).sum(axis=1).astype(np.float32)
        found = np.empty(len(frames), np.int64)
        for first in range(0, len(frames), _ROWS):
            rows = frames[first : first + _ROWS]
            found[first : first + _ROWS] = (offsets - 2 * (rows @ self.centers.T)).argmin(axis=1)
        return found

    def check(self, spec: FeatureSpec) -> None:
        """Refuse a store of other features than those that were fitted.

        Raises
        ------
        SpecMismatchError
            Names the settings that differ.

        Examples
        --------
        >>> from featurestore.errors import SpecMismatchError
        >>> from featurestore.training.labels import KMeansModel
        >>> spec = FeatureSpec.for_arrays(layers=[7], dim=3)
        >>> fit = KMeansModel(centers=np.eye(3, dtype=np.float32), spec=spec, details={})
        >>> fit.check(FeatureSpec.for_arrays(layers=[4, 7], dim=3))  # has the layer
        >>> try:
        ...     fit.check(FeatureSpec.for_arrays(layers=[7], dim=5))
        ... except SpecMismatchError as error:
        ...     error.differences
        {'dim': (5, 3)}
        """
        wanted = of_layer(spec, self.layer)
        if differences := wanted.differences(self.spec):
            listed = "; ".join(
                f"`{name}` is {have!r}, not {fitted!r}" for name, (have, fitted) in differences.items()
            )
            raise SpecMismatchError(
                f"the fit is of other features than the store's ({listed}): its labels would mean nothing; use a "
                "store of the same settings, or fit anew",
                differences=differences,
            )

    def save(self, path: Path) -> None:
        """Write it as an .npz file without pickles: ``centers``, and ``about``, a text of JSON.

        Raises
        ------
        StoreAccessError
            If it cannot be written.

        Examples
        --------
        >>> from pathlib import Path
        >>> from featurestore.training.labels import KMeansModel
        >>> spec = FeatureSpec.for_arrays(layers=[7], dim=3)
        >>> fit = KMeansModel(centers=np.eye(3, dtype=np.float32), spec=spec, details={})
        >>> fit.save(Path("fit.km.npz"))
        >>> np.load("fit.km.npz")["centers"].shape
        (3, 3)
        """
        with replacing(path) as (file,):
            file.write(self.content())

    def content(self) -> bytes:
        """Return what `save` writes.

        Examples
        --------
        >>> from featurestore.training.labels import KMeansModel
        >>> spec = FeatureSpec.for_arrays(layers=[7], dim=3)
        >>> fit = KMeansModel(centers=np.eye(3, dtype=np.float32), spec=spec, details={})
        >>> fit.content()[:2]
        b'PK'
        """
        about = {"format": _FORMAT, "fingerprint": self.spec.fingerprint, "spec": self.spec.to_dict()}
        content = io.BytesIO()
        np.savez(content, centers=self.centers, about=np.array(json.dumps({**about, **self.details})))
        return content.getvalue()

    @classmethod
    def load(cls, path: Path) -> KMeansModel:
        """Read what `save` wrote.

        Raises
        ------
        SourceError
            If there is no such file, or it is none of a fit, or damaged.

        Examples
        --------
        >>> from pathlib import Path
        >>> from featurestore.training.labels import KMeansModel
        >>> spec = FeatureSpec.for_arrays(layers=[7], dim=3)
        >>> fit = KMeansModel(centers=np.eye(3, dtype=np.float32), spec=spec, details={})
        >>> fit.save(Path("fit.km.npz"))
        >>> KMeansModel.load(Path("fit.km.npz")).layer
        7
        """
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError("it is too large")
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no .npz file")
            # Opened here, since numpy leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                centers, about = content["centers"], json.loads(str(content["about"]))
            if about.pop("format") != _FORMAT:
                raise ValueError("it was written by another release")
            spec = FeatureSpec.from_dict(about.pop("spec"))
            if about.pop("fingerprint") != spec.fingerprint or len(spec.layers) != 1:
                raise ValueError("its spec and its fingerprint do not belong together")
            if (
                centers.dtype != np.float32
                or centers.ndim != 2
                or centers.shape[1] != spec.dim
                or not len(centers)
            ):
                raise ValueError(f"its centres are {centers.dtype} of shape {centers.shape}")
            if not np.isfinite(centers).all():
                raise ValueError("its centres are not finite")
        except OSError as error:
            raise SourceError(f"the fit {path} cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path} is no fit of fs-extract labels, or damaged: {error}") from None
        return cls(centers=centers, spec=spec, details=about)


def of_layer(spec: FeatureSpec, layer: int) -> FeatureSpec:
    """The spec of one layer alone: stores of other layers beside it hold the same features of this one."""
    return dataclasses.replace(spec, layers=(layer,))
