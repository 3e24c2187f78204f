"""Manifests and labels for training: which files, and what a teacher says of each frame.

Text in the layout of fairseq's HuBERT: ``train.tsv``, ``train.km``, ``dict.km.txt``. Nothing here knows a model.
scikit-learn is imported by the function that fits.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.labels.fits import Fit
    from featurestore.labels.kmeans import fit_kmeans
    from featurestore.labels.labelling import LabelReport, label_store
    from featurestore.labels.manifests import ManifestReport, write_manifests
    from featurestore.labels.tokens import read_dictionary, read_labels

_MODULES = {
    "Fit": "fits",
    "LabelReport": "labelling",
    "ManifestReport": "manifests",
    "fit_kmeans": "kmeans",
    "label_store": "labelling",
    "read_dictionary": "tokens",
    "read_labels": "tokens",
    "write_manifests": "manifests",
}

__all__ = [
    "Fit",
    "LabelReport",
    "ManifestReport",
    "fit_kmeans",
    "label_store",
    "read_dictionary",
    "read_labels",
    "write_manifests",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
