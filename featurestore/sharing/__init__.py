"""Features of a store for others: in another store, in one file, in the formats of other tools."""

from featurestore.sharing.store import SharingStore

__all__ = ["SharingStore"]
