"""Manifests and labels for training: which files, and what a teacher says of each frame.

Text in the layout of fairseq's HuBERT: ``train.tsv``, ``train.km``, ``dict.km.txt``. Nothing here knows a model.
scikit-learn is imported by the function that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore.training.labels.kmeans import fit_kmeans
    from featurestore.training.labels.kmeans_model import KMeansModel
    from featurestore.training.labels.labelling import LabelReport, label_store
    from featurestore.training.labels.manifests import ManifestReport, write_manifests
    from featurestore.training.labels.tokens import read_dictionary, read_labels

__all__ = [
    "KMeansModel",
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
        "featurestore.training.labels.kmeans": ["fit_kmeans"],
        "featurestore.training.labels.kmeans_model": ["KMeansModel"],
        "featurestore.training.labels.labelling": ["LabelReport", "label_store"],
        "featurestore.training.labels.manifests": ["ManifestReport", "write_manifests"],
        "featurestore.training.labels.tokens": ["read_dictionary", "read_labels"],
    },
)
