"""Words that settings may have and that several rooms, and the command line, share."""

from __future__ import annotations

from pathlib import Path

METRICS = ("centred-cosine", "cosine", "whitened")
"""How rows are compared by `FeatureStore.similar`; the first is the default."""

EXPORT_SUFFIXES = {
    "hdf5": (".h5", ".hdf5"),
    "netcdf": (".nc",),
    "parquet": (".parquet",),
    "csv": (".csv",),
    "npy": (),
}
"""Formats of an export, and the suffixes that mean each."""

ID_FROM = ("path", "stem")
"""What becomes the id of a track: the relative path without suffix, or the name of the file alone."""

PRECISIONS = ("fp32", "fp16", "bf16")
"""Arithmetic of a model."""

PRECISION_CHOICES = (*PRECISIONS, "auto")
"""Auto is bf16 on a CPU that has its products, fp16 on cuda, or else fp32."""


def format_of(path: Path) -> str | None:
    """The format of an export that the suffix of a path means; None if it means none."""
    suffix = path.suffix.lower()
    return next((name for name, suffixes in EXPORT_SUFFIXES.items() if suffix in suffixes), None)
