"""Pretraining and what it learns from. A wing of its own: nothing else of the library knows it."""
