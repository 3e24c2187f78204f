"""The `fs-extract` command: parsing and printing; all work is done by the library."""
