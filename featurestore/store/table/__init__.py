"""The packed table of all tracks, and the index of what the store has."""
