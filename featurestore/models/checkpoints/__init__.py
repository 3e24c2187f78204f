"""Checkpoints: where they come from, what is read of them and checked, and the encoders that they become."""
