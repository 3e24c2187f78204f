"""A picture of a probe: a bar for each layer, with its spread, and the lines of chance and shuffled labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HEIGHT, _LEFT, _STEP = 220, 52, 34
_STYLE = (
    "text{font:12px sans-serif;fill:#444}.bar{fill:#9db7d5}.tie{fill:#2f6db3}"
    "line{stroke:#333}.chance{stroke-dasharray:6 4}.shuffled{stroke-dasharray:2 4}"
)


def draw(title: str, metric: str, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, float]) -> str:
    """Make the SVG of `ProbeReport.rows`, with lines at the values of ``chance`` and ``shuffled``."""
    values = [0.0, *lines.values()]
    for row in rows:
        values += [row["mean"] - row["std"], row["mean"] + row["std"]]
    low, high = min(values), max(values)

    def y(value: float) -> float:
        return round(30 + float(_HEIGHT * (high - value) / ((high - low) or 1)), 1)

    end = _LEFT + _STEP * len(rows)
    parts = [f'<text x="{_LEFT}" y="16">{escape(title)}</text>']
    for number, row in enumerate(rows):
        x, ends = _LEFT + _STEP * number, sorted((y(row["mean"]), y(0)))
        kind = "bar tie" if row["ties_with_best"] else "bar"
        said = f"layer {row['layer']}: {row['mean']:.3f} ± {row['std']:.3f}"
        parts += [
            f'<rect class="{kind}" x="{x + 4}" y="{ends[0]}" width="{_STEP - 8}" height="{ends[1] - ends[0]:.1f}">'
            f"<title>{escape(said)}</title></rect>",
            f'<line x1="{x + _STEP / 2}" x2="{x + _STEP / 2}" y1="{y(row["mean"] - row["std"])}" '
            f'y2="{y(row["mean"] + row["std"])}"/>',
            f'<text x="{x + _STEP / 2}" y="{_HEIGHT + 48}" text-anchor="middle">{escape(row["layer"])}</text>',
        ]
    for name, value in lines.items():
        parts.append(f'<line class="{name}" x1="{_LEFT}" x2="{end}" y1="{y(value)}" y2="{y(value)}"/>')
    for value in (low, high):
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4}" text-anchor="end">{value:.2f}</text>')
    keys = f"dashed: chance {lines['chance']:.3f}; dotted: shuffled labels {lines['shuffled']:.3f}"
    for place, line in enumerate((f"{metric} by layer; dark: as good as the best", keys)):
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT + 68 + 16 * place}">{escape(line)}</text>')
    size = f"{max(end, 420) + 20} {_HEIGHT + 94}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" aria-label="{escape(title)}">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )
