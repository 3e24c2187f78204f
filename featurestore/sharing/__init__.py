"""Features of a store for others: in another store, in a bucket, in one file, in the formats of other tools."""

from featurestore.sharing.pull import pull
from featurestore.sharing.push import TransferReport
from featurestore.sharing.store import SharingStore

__all__ = ["SharingStore", "TransferReport", "pull"]
