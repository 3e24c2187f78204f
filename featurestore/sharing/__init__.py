"""Features of a store for others: in another store, in a bucket, in one file, in the formats of other tools."""

from featurestore.sharing.pull import pull
from featurestore.sharing.store import SharingStore
from featurestore.sharing.transfer import TransferReport

__all__ = ["SharingStore", "TransferReport", "pull"]
