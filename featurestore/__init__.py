"""Music collections to MERT features in a Zarr store that is safe to write and fast to read.

The public names are imported on first use, so that ``import featurestore`` costs nothing and analysis code
never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore._lazy import lazy

if TYPE_CHECKING:
    from featurestore._version import __version__
    from featurestore.audio import load_audio, segment_audio, validate_audio_file
    from featurestore.facade import FeatureStore
    from featurestore.models import load_model
    from featurestore.pipeline import BuildReport, build
    from featurestore.pipeline.extractor import FeatureExtractor
    from featurestore.sharing.earlier_names import (
        features_exist,
        features_exist_for_types,
        load_features,
        load_selected_features,
    )
    from featurestore.spec import FeatureSpec
    from featurestore.store import StoreWriter, VerifyReport

__all__ = [
    "BuildReport",
    "FeatureExtractor",
    "FeatureSpec",
    "FeatureStore",
    "StoreWriter",
    "VerifyReport",
    "__version__",
    "build",
    "features_exist",
    "features_exist_for_types",
    "load_audio",
    "load_features",
    "load_model",
    "load_selected_features",
    "segment_audio",
    "validate_audio_file",
]


__getattr__ = lazy(
    __name__,
    {
        "featurestore._version": ["__version__"],
        "featurestore.audio": ["load_audio", "segment_audio", "validate_audio_file"],
        "featurestore.facade": ["FeatureStore"],
        "featurestore.models": ["load_model"],
        "featurestore.pipeline": ["BuildReport", "build"],
        "featurestore.pipeline.extractor": ["FeatureExtractor"],
        "featurestore.sharing.earlier_names": [
            "features_exist",
            "features_exist_for_types",
            "load_features",
            "load_selected_features",
        ],
        "featurestore.spec": ["FeatureSpec"],
        "featurestore.store": ["StoreWriter", "VerifyReport"],
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
