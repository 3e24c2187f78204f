"""Sealed bundles: thousands of tracks in a few files that never change."""
