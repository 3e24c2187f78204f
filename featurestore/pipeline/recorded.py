"""What a store remembers of how it was built: settings that a build is not given come from there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.choices import PRECISIONS
from featurestore.errors import CheckpointError
from featurestore.keywords import warn_of_earlier_variables
from featurestore.models.checkpoints.files import find_weights, weights_sha256
from featurestore.pipeline.plan import Job, published_attributes
from featurestore.spec import FEATURE_LEVELS, FeatureSpec
from featurestore.store import StoreReader
from featurestore.store.runs import read_runs
from featurestore.windows import AUTO

DEFAULT_MODEL, DEFAULT_LEVEL = "m-a-p/MERT-v1-95M", "segments"
"""Of stores that are new."""

_LOOKED_AT = 20
"""Tracks that are looked at for the level of a store."""


def recorded_ids(runs: Sequence[Mapping[str, Any]], source: str | os.PathLike[str]) -> tuple[str | None, str]:
    """Return the data set and the rule of the ids that the last run with a source had."""
    for run in reversed(runs):
        if run.get("source") == os.path.abspath(source):
            options = run.get("options", {})
            return options.get("dataset"), options.get("id_from", "path")
    return None, "path"


def recorded_level(there: StoreReader) -> str | None:
    """Return the feature level that most of a store's first tracks have; None if there are none."""
    levels: Counter[str] = Counter()
    for track_id in there.track_ids[:_LOOKED_AT]:
        kinds = (published_attributes(there.provenance, track_id) or {}).get("kinds", ())
        levels.update([level for level, names in FEATURE_LEVELS.items() if set(names) <= set(kinds)][:1])
    return levels.most_common(1)[0][0] if levels else None


def lower_level(had: str | None, wanted: str) -> str | None:
    """Return the level that a store had if it is lower than the one that is wanted."""
    return had if had and len(FEATURE_LEVELS[had]) < len(FEATURE_LEVELS[wanted]) else None


def recorded_settings(there: StoreReader | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a store was built with, for settings of the encoder that are not given.

    Layers and revision are those of the store's own model alone.
    """
    warn_of_earlier_variables()
    if there is None:
        return {"model": DEFAULT_MODEL} if given["model"] is None else {}
    spec, model = there.spec, given["model"]
    found: dict[str, Any] = {}
    if model is None:
        found["model"] = model = spec.model or DEFAULT_MODEL
    if spec.model == (str(model) if isinstance(model, str | os.PathLike) else getattr(model, "name", None)):
        if given["revision"] is None and isinstance(model, str | os.PathLike):
            found["revision"] = spec.revision
        if given["layers"] is None:
            found["layers"] = spec.layers
        if given["segment_duration"] == AUTO and spec.segment_duration is not None:
            found["segment_duration"] = spec.segment_duration
        if given["overlap"] is None:
            found["overlap"] = spec.overlap
        if given["precision"] is None and given["mixed_precision"] and spec.precision in PRECISIONS:
            found["precision"] = spec.precision
    return found


def recorded_options(there: StoreReader, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a build of a store takes from it, for options that are not given, by their names.

    Data set and rule of the ids are those of the last run, whatever its source.
    """
    last: Mapping[str, Any] = next((x["options"] for x in reversed(read_runs(there.path)) if "options" in x), {})
    found = {
        **recorded_settings(there, given),
        "feature_level": recorded_level(there),
        "dtype": there.spec.dtype,
        "codec": there.spec.codec,
        "dataset": last.get("dataset"),
        "id_from": last.get("id_from"),
    }
    return {name: value for name, value in found.items() if given.get(name) in (None, AUTO)}


def fits(spec: FeatureSpec, job: Job, settings: Mapping[str, Any]) -> bool:
    """Tell whether an encoder of these settings certainly makes features of a spec, without opening it."""
    model = settings["model"]
    if not isinstance(model, str | os.PathLike) or str(model) != spec.model:
        return False
    if os.path.isdir(model):
        try:
            if weights_sha256(find_weights(Path(model))) != spec.weights_sha256:
                return False
        except (CheckpointError, OSError):
            return False
    wanted = {
        "revision": settings["revision"],
        "segment_duration": settings["segment_duration"],
        "overlap": settings["overlap"],
        "layers": None if settings["layers"] is None else tuple(sorted(settings["layers"])),
        "precision": settings["precision"] or (None if settings["mixed_precision"] else "fp32"),
        "dtype": job.dtype,
        "codec": job.codec,
    }
    return all(getattr(spec, name) == value for name, value in wanted.items())
