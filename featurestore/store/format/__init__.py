"""The format on disk: keys, metadata, compression, shards."""
