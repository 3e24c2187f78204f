"""The scores that training and probes are rendered from: which pieces, and their notes, kept in a folder.

Needs music21; all works are in the public domain.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.training.midi import Note, score_notes

COMPOSERS = ("bach", "monteverdi", "palestrina")
"""What the probe of composers tells apart: those of whom music21 has many pieces in the same notation."""

OTHERS = (
    "beethoven",
    "haydn",
    "mozart",
    "schumann_robert",
    "schumann_clara",
    "trecento",
    "josquin",
    "ryansMammoth",
)

HELD_OUT = 48
"""Pieces of each of `COMPOSERS` that only probes hear."""

TRAINING = 40
"""Most pieces of each composer that training hears."""


def pieces(*, held_out: bool) -> list[tuple[str, str]]:
    """(composer, path within music21's corpus) of the pieces for probes or of those for training.

    The order is that of a hash of the path, so that a piece stays on its side when others are added.
    """
    from music21 import corpus

    chosen = []
    for composer in COMPOSERS if held_out else (*COMPOSERS, *OTHERS):
        names = sorted({_name(path) for path in corpus.getComposer(composer)}, key=_hash)
        first = HELD_OUT if composer in COMPOSERS else 0
        chosen += [(composer, name) for name in (names[:first] if held_out else names[first : first + TRAINING])]
    return chosen


def notes_of(name: str, cache: Path) -> list[Note]:
    """Notes of a piece at the default tempo; parsing takes seconds, so they are kept in `cache`."""
    from music21 import corpus

    kept = cache / f"{_hash(name)}.json"
    if not kept.exists():
        parsed = corpus.parse(name)
        notes = score_notes(next(iter(getattr(parsed, "scores", [])), parsed))
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(notes), encoding="utf-8")
    return [Note(*values) for values in json.loads(kept.read_text(encoding="utf-8"))]


def _name(path: object) -> str:
    return str(path).replace("\\", "/").split("/corpus/", 1)[1]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
