"""Words that settings may have and that several rooms, and the command line, share."""

from __future__ import annotations

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

PRECISIONS = ("fp32", "fp16", "bf16")
"""Arithmetic of a model."""

PRECISION_CHOICES = (*PRECISIONS, "auto")
"""Auto is bf16 on a CPU that has its products, fp16 on cuda, or else fp32."""
