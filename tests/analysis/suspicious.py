"""Tracks that a report should name, and names that would do harm."""

SCRIPT = "</script><img src=x onerror=document.title='run'>"
LONG = "x" * 190
PLANTED = {
    "pop/silent": {"levels": {"rms": 1e-7, "peak": 1e-6, "clipped": 0.0}, "warnings": ["it is silent"]},
    "pop/clipped": {"levels": {"rms": 0.5, "peak": 1.0, "clipped": 0.25}},
    "pop/copy": {"audio": {"sha256": "0" * 64, "duration": 30.0}},
    "pop/original": {"audio": {"sha256": "0" * 64, "duration": 30.0}},
    SCRIPT: {"warnings": ["<b onclick=x>warned</b>"]},
}
"""What is wrong with some tracks; of others, features are."""
