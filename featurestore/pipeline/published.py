"""What a store has of a track by now, and whether that is what is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from featurestore.errors import AudioError, CorruptTrackError, TrackNotFoundError
from featurestore.pipeline.plan import Requirements, TrackPlan
from featurestore.store import StoreWriter

logger = logging.getLogger("featurestore")


def is_published(writer: StoreWriter, requirements: Requirements, plan: TrackPlan) -> bool:
    """Tell whether the store has the features of a track by now."""
    published = published_attributes(writer.existing, plan.track.track_id)
    try:
        return requirements.is_satisfied_by(published, plan.track)
    except AudioError:
        return False  # decoding says what is wrong with the file


def published_attributes(
    read: Callable[[str], Mapping[str, Any] | None], track_id: str
) -> Mapping[str, Any] | None:
    """Return the attributes of a track; None if there is none, or a damaged one, which is extracted again."""
    try:
        return read(track_id)
    except TrackNotFoundError:
        return None
    except CorruptTrackError as error:
        logger.warning("%s: %s", track_id, error)
        return None
