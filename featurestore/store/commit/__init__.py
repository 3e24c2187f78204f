"""How a track becomes a part of the store: locks, staging, and a transaction that is finished or never was."""
