"""Twenty tasks of newcomers, with this library (docs/walkthrough.md) and with others, measured by running them."""
