"""The store: layout, locks, shards, publishing, the packed table, reading and checking."""

from featurestore.store.format.metadata import estimate_bytes
from featurestore.store.lazy_array import View
from featurestore.store.store import StoreReader
from featurestore.store.track_writer import TrackWriter
from featurestore.store.verify import Problem, VerifyReport
from featurestore.store.views import AggregatedView, RaggedView, TrackView
from featurestore.store.writer import StoreWriter

__all__ = [
    "AggregatedView",
    "Problem",
    "RaggedView",
    "StoreReader",
    "StoreWriter",
    "TrackView",
    "TrackWriter",
    "VerifyReport",
    "View",
    "estimate_bytes",
]
