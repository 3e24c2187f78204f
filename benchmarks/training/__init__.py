"""Music to train with and to probe with, and how well models hear it."""
