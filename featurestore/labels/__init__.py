"""Manifests and labels for training: which files, and what a teacher says of each frame.

Text in the layout of fairseq's HuBERT: ``train.tsv``, ``train.km``, ``dict.km.txt``. Nothing here knows a model.
scikit-learn is imported by the function that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.labels.fits import Fit
    from featurestore.labels.kmeans import fit_kmeans
    from featurestore.labels.labelling import LabelReport, label_store
    from featurestore.labels.manifests import ManifestReport, write_manifests
    from featurestore.labels.tokens import read_dictionary, read_labels

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

__getattr__ = lazy(
    __name__,
    {
        "Fit": "featurestore.labels.fits",
        "LabelReport": "featurestore.labels.labelling",
        "ManifestReport": "featurestore.labels.manifests",
        "fit_kmeans": "featurestore.labels.kmeans",
        "label_store": "featurestore.labels.labelling",
        "read_dictionary": "featurestore.labels.tokens",
        "read_labels": "featurestore.labels.tokens",
        "write_manifests": "featurestore.labels.manifests",
    },
)
