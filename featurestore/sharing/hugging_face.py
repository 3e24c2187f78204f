"""A table of features as a data set of Hugging Face's datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import MissingDependencyError
from featurestore.sharing.files import arrow_tables

if TYPE_CHECKING:
    from featurestore.store import StoreReader


def hugging_face_dataset(
    store: StoreReader, tracks: Sequence[str], level: str, layers: Sequence[int], labels: Mapping[str, Any] | None
) -> Any:
    """Read a table into memory; `featurestore.FeatureStore.to_hf_dataset` says more."""
    try:
        import datasets
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependencyError("datasets is needed: pip install 'featurestore[datasets]'") from error
    schema, tables = arrow_tables(store, tracks, level, layers)
    table = pa.Table.from_batches([batch for some in tables for batch in some.to_batches()], schema)
    features = datasets.Features.from_arrow_schema(schema)
    if labels is not None:
        values = np.array([labels[track_id] for track_id in table["track_id"].to_pylist()])
        if values.dtype.kind != "f":
            classes, values = np.unique(values, return_inverse=True)
            features["label"] = datasets.ClassLabel(names=[str(name) for name in classes.tolist()])
        else:
            features["label"] = datasets.Value("float64")
        table = table.append_column("label", pa.array(values))
    return datasets.Dataset(table.cast(features.arrow_schema), datasets.DatasetInfo(features=features))
