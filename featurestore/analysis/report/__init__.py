"""A report on a store: one page of HTML that loads nothing and can be opened anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.amounts import hours_in_words
from featurestore.analysis.report.page import page_template, render
from featurestore.analysis.report.statistics import (
    NEIGHBOURS,
    axis,
    histogram,
    layer_statistics,
    self_similarity,
)
from featurestore.analysis.report.suspects import find_suspects
from featurestore.analysis.report.track_map import (
    Colouring,
    by_class,
    by_number,
    map_layers,
    pack_map,
    pick_points,
)
from featurestore.analysis.tracks import known_tracks, window_seconds
from featurestore.atomic import replacing
from featurestore.errors import SettingError
from featurestore.store.runs import failures_of, read_runs

if TYPE_CHECKING:
    from featurestore.store import StoreReader

_LISTED = 100
"""Rows of a list of tracks."""

_LONGEST = 96
"""Rows of a picture of a track with itself."""

_SHOWN_TRACKS = 3


def write_report(
    store: StoreReader,
    path: Path,
    *,
    labels: Mapping[str, Any] | None = None,
    label: str = "label",
    layer: int | None = None,
    tracks: Sequence[str] | None = None,
) -> dict[str, int]:
    """Write the report; `featurestore.FeatureStore.report` says what the parameters are.

    Here `labels` are the values of the tracks that have one.
    """
    spec = store.spec
    chosen = spec.layers[len(spec.layers) // 2] if layer is None else layer
    if chosen not in spec.layers:
        raise SettingError(f"`layer` must be one of {', '.join(map(str, spec.layers))}, not {chosen!r}")
    template, runs = page_template(), read_runs(store.path)
    found = dict(known_tracks(store))
    track_ids, known = list(found), list(found.values())
    if not track_ids:
        raise SettingError(f"the store {store.path} has no tracks yet: there is nothing to report")
    statistics = layer_statistics(store, track_ids)
    suspects = find_suspects(store, track_ids, known, statistics)
    seconds = np.array([_seconds(track) for track in known])
    levels = np.array([(track.get("levels") or {}).get("rms", np.nan) for track in known], np.float64)
    with np.errstate(divide="ignore"):
        loudness = np.maximum(20 * np.log10(levels), -120)
    points = pick_points(track_ids, [number for kind in suspects for number, _ in kind.rows[:_LISTED]])
    colourings = _colourings(track_ids, points, labels, label, seconds, loudness)
    place = {number: point for point, number in enumerate(points.tolist())}
    layers = map_layers(spec.layers, chosen)
    positions = [spec.layers.index(x) for x in layers]
    data = pack_map(track_ids, points, statistics.coordinates[positions], colourings)
    mean = statistics.means[spec.layers.index(chosen)]
    pictures = _pictures(store, track_ids, known, chosen, mean, tracks)
    warned = [(n, str(text)) for n, track in enumerate(known) for text in track.get("warnings", ())]
    layers_shown = _layer_rows(spec.layers, statistics)
    html = render(
        template,
        {
            "name": store.path.name,
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "count": len(track_ids),
            "facts": _facts(store, known, seconds, runs),
            "failed": failures_of(runs),
            "suspects": suspects,
            "suspicious": len({n for kind in suspects for n, _ in kind.rows}),
            "unknown_levels": int(np.isnan(levels).sum()),
            "listed": _LISTED,
            "warned": warned,
            "ids": track_ids,
            "place": place,
            "durations": histogram(seconds / 60, "minutes"),
            "loudness": histogram(loudness, "dB"),
            "layers": layers_shown,
            "norm_axis": axis(max((row["high"] for row in layers_shown if row["high"] > 0), default=0)),
            "similarity": statistics.similarity,
            "sampled": statistics.sampled,
            "points": len(points),
            "map_layers": [
                (x, x == chosen, float(statistics.explained[p]), float(statistics.kept[p]))
                for x, p in zip(layers, positions, strict=True)
            ],
            "neighbours": NEIGHBOURS,
            "colourings": [colouring.name for colouring in colourings],
            "pictures": pictures,
            "layer": chosen,
        },
        {**data, "layers": layers, "layer": layers.index(chosen), "pictures": [x["data"] for x in pictures]},
    )
    with replacing(path) as (file,):
        # Names of files that are no UTF-8 have characters that cannot be written.
        file.write(html.encode("utf-8", "backslashreplace"))
    return {kind.kind: len(kind.rows) for kind in suspects}


def _seconds(track: Mapping[str, Any]) -> float:
    duration = (track.get("audio") or {}).get("duration")
    return float("nan") if duration is None else float(duration)


def _facts(
    store: StoreReader, known: Sequence[Mapping[str, Any]], seconds: Any, runs: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What is in the store and how it was made, as names and values."""
    info, spec = store.info(), store.spec
    windows = "not known"
    if (length := spec.segment_duration) is not None:
        windows = length if isinstance(length, str) else f"{length:g} s"
        windows += "" if spec.overlap is None else f", overlap {spec.overlap:.0%}"
    facts = [
        ("Path", info["path"]),
        ("Tracks", f"{len(known):,}, {info['packed']:,} of them packed"),
        ("Audio", hours_in_words(float(np.nansum(seconds)) / 3600) + _gaps(int(np.isnan(seconds).sum()))),
        ("Kinds of features", _counted(kind for track in known for kind in track["kinds"])),
        ("Model", str(spec.model or "none") + (f", revision {spec.revision}" if spec.revision else "")),
        ("Layers", f"{', '.join(map(str, spec.layers))} of {spec.dim} features"),
        ("Windows", windows),
        ("Stored as", f"{spec.dtype}, codec {spec.codec}, computed in {spec.precision or 'unknown precision'}"),
        ("Device", _counted(track.get("device") for track in known)),
        ("Decoder", _counted(track.get("decoder") for track in known)),
        ("Written by", _counted(track.get("featurestore_version") for track in known)),
        ("Last build", f"{runs[-1]['began'][:19]}, one of {len(runs):,}" if runs else ""),
        ("Its command", str(runs[-1].get("command", "")) if runs else ""),
        ("Format", str(info["format"])),
        ("Fingerprint", info["fingerprint"]),
    ]
    return [(name, value) for name, value in facts if value]


def _gaps(count: int) -> str:
    return f"; the length of {count:,} tracks is not known" if count else ""


def _counted(values: Any) -> str:
    counts = Counter(str(value) for value in values if value)
    return ", ".join(f"{value} ({count:,})" for value, count in counts.most_common(6))


def _layer_rows(layers: Sequence[int], statistics: Any) -> list[dict[str, Any]]:
    """Norms of each layer (5th, 50th and 95th percentile), and the share that tracks have in common."""
    rows = []
    for number, layer in enumerate(layers):
        norms, distances = statistics.norms[:, number], statistics.distances[:, number]
        finite = np.isfinite(norms) & np.isfinite(distances)
        low, middle, high = np.percentile(norms[finite], (5, 50, 95)) if finite.any() else (np.nan,) * 3
        length = float(np.square(norms[finite], dtype=np.float64).sum())
        variance = float(np.square(distances[finite], dtype=np.float64).sum())
        spread = variance / length if length else float("nan")
        per_feature = variance / max(1, int(finite.sum())) / statistics.means.shape[1]
        rows.append(
            {
                "layer": layer,
                "low": float(low),
                "middle": float(middle),
                "high": float(high),
                "spread": spread,
                "variance": per_feature,
            }
        )
    return rows


def _colourings(
    track_ids: Sequence[str],
    points: Any,
    labels: Mapping[str, Any] | None,
    label: str,
    seconds: Any,
    loudness: Any,
) -> list[Colouring]:
    """What the points may be coloured by; what is the same everywhere, or known of none, is left out."""
    shown = [track_ids[point] for point in points.tolist()]
    found = []
    if labels is not None:
        values = [labels.get(track_id) for track_id in shown]
        numbers = {x for x in values if x is not None}
        is_number = len(numbers) > 20 and all(isinstance(x, int | float) for x in numbers)
        found.append(by_number(label, values) if is_number else by_class(label, values))
    folders = [track_id.partition("/")[0] if "/" in track_id else None for track_id in shown]
    found.append(by_class("first part of the id", folders))
    found.append(by_number("minutes", seconds[points] / 60))
    found.append(by_number("loudness (dB)", loudness[points]))
    return [colouring for number, colouring in enumerate(found) if colouring.differs or (labels and not number)]


def _pictures(
    store: StoreReader,
    track_ids: Sequence[str],
    known: Sequence[Mapping[str, Any]],
    layer: int,
    mean: Any,
    tracks: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Tracks compared with themselves over time: those that are asked for, or some long ones."""
    if tracks is None:
        usual = [n for n, track in enumerate(known) if "segments" in track["kinds"]]
        usual = sorted(usual, key=lambda n: -len(known[n]["starts"]))[:_SHOWN_TRACKS]
        tracks = [track_ids[n] for n in usual]
    found = []
    for track_id in tracks:
        view = store.segments(track_id, layer=layer)
        segments, starts = view.to_numpy(), view.starts
        cosines = self_similarity(segments, mean, _LONGEST)
        levels = np.nan_to_num(np.clip(np.rint((cosines + 1) * 127.5), 0, 255)).astype(np.uint8)
        end = float(starts[-1]) + window_seconds(store, track_id, starts) if len(starts) else None
        off = cosines[~np.eye(len(cosines), dtype=bool)]
        found.append(
            {
                "track_id": track_id,
                "segments": len(segments),
                "rows": len(cosines),
                "seconds": end,
                "mean": float(np.nanmean(off)) if np.isfinite(off).any() else None,
                "data": {"size": len(cosines), "values": levels},
            }
        )
    return found
