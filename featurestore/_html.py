"""Tables of HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def html_table(title: str, rows: Mapping[str, Any]) -> str:
    """Return a table of names and values; nothing in them is HTML, whatever they hold.

    Rows without a value (None) are left out.
    """
    shown = "".join(
        f'<tr><th style="text-align:left">{_text(name)}</th><td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in rows.items()
        if value is not None
    )
    return f"<table><caption>{_text(title)}</caption>{shown}</table>"


def _text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))
