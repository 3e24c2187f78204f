"""Questions to a store: what its tracks are, which are alike, which layer knows what; and datasets of torch."""

from featurestore.analysis.labels import Joined
from featurestore.analysis.probe import ProbeReport
from featurestore.analysis.similarity import Match
from featurestore.analysis.torch_dataset import TrackDataset, collate_ragged
from featurestore.analysis.tracks import TrackTable

__all__ = ["Joined", "Match", "ProbeReport", "TrackDataset", "TrackTable", "collate_ragged"]
