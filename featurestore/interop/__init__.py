"""Leaves: the store's views in the words of other libraries."""
