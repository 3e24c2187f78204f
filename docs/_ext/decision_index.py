"""The table of docs/decisions, made from the first lines of its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PLACE = "<!-- the table of decisions -->"
_HEAD = re.compile(
    r"# (?P<number>\d{3}): (?P<title>[^\n]+)\n\n"
    r"\*\*Status:\*\* (?P<status>[^*\n]+)\. \*\*Date:\*\* (?P<date>\d{4}-\d\d-\d\d)\.\n\n"
)


@dataclass(frozen=True)
class Decision:
    """What the first lines of a decision say."""

    file: str
    number: str
    title: str
    status: str
    date: str


def read_decision(path: Path) -> Decision:
    """The decision of a file; ValueError if its first lines are not as they should be."""
    head = _HEAD.match(path.read_text(encoding="utf-8"))
    if head is None or not path.name.startswith(head["number"] + "-"):
        raise ValueError(
            f"{path} must begin with '# NNN: title', NNN being the number in its name, a blank line, and "
            "'**Status:** accepted. **Date:** YYYY-MM-DD.'"
        )
    return Decision(path.name, **head.groupdict())


def read_decisions(folder: Path) -> list[Decision]:
    """All decisions of a folder, by number."""
    return [read_decision(path) for path in sorted(folder.glob("[0-9]*.md"))]


def table(decisions: list[Decision]) -> str:
    """The decisions as Markdown: a table, and the entries of the navigation."""
    rows = [f"| {x.number} | [{x.title}]({x.file}) | {x.status} | {x.date} |" for x in decisions]
    entries = [f"{x.number} {_plain(x.title)} <{x.file.removesuffix('.md')}>" for x in decisions]
    head = ["| number | decision | status | date |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, "", "```{toctree}", ":hidden:", "", *entries, "```", ""])


def _plain(title: str) -> str:
    return title.replace("`", "")


def _fill_in(app: Sphinx, document: str, source: list[str]) -> None:
    if document == "decisions/index":
        source[0] = source[0].replace(PLACE, table(read_decisions(Path(app.srcdir, "decisions"))))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _fill_in)
    return {"parallel_read_safe": True}
