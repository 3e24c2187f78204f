"""Faster forms of an encoder, and how near they are to it."""
