"""Memory of runs: what each build of a store did, one file of JSON each in `.featurestore/runs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurestore.addresses import StoreUrl
from featurestore.atomic import replacing
from featurestore.errors import SettingError
from featurestore.shard import Shard
from featurestore.store import reading
from featurestore.store.byte_source import LocalFolder
from featurestore.store.paths import StorePaths

_MOST_BYTES = 2**28
_CUT_SHORT = ("interrupted", "stopped", "not_reached")
"""What says of a run that it has not come to all of its tracks."""


def write_run(store: Path, run: Mapping[str, Any]) -> None:
    """Keep what a build did; it has ``began``, a time of ISO 8601.

    Raises
    ------
    StoreAccessError
        If it cannot be written.
    """
    moment = datetime.fromisoformat(run["began"]).astimezone(UTC)
    with replacing(StorePaths.of(store).runs / f"{moment:%Y%m%dT%H%M%S.%fZ}.json") as (file,):
        file.write(json.dumps(run, indent=1).encode())


def read_runs(store: Path | StoreUrl) -> list[dict[str, Any]]:
    """Return what is known of the builds of a store, oldest first; files that are no such thing are left out.

    Nothing is known of a store in a bucket.
    """
    if isinstance(store, StoreUrl):
        return []
    found = []
    for path in sorted(StorePaths.of(store).runs.glob("[0-9]*.json")):
        try:
            with LocalFolder(reading.open_root(path.parent, follow_links=True)) as folder:
                run = json.loads(folder.read(path.name, _MOST_BYTES))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(run, dict) and _is_record(run):
            found.append(run)
    return found


def _is_record(run: Mapping[str, Any]) -> bool:
    """Tell whether what readers of runs rely on is there."""
    options, errors = run.get("options", {}), run.get("errors")
    if not isinstance(options, dict):
        return False
    named = [run.get("retried", []), run.get("skipped_tracks", []), options.get("exclude", [])]
    return (
        isinstance(run.get("began"), str)
        and all(isinstance(options.get(x), str | None) for x in ("file_pattern", "dataset", "id_from"))
        and isinstance(run.get("elapsed_time", 0.0), int | float)
        and all(isinstance(texts, list) for texts in named)
        and all(isinstance(text, str) for texts in named for text in texts)
        and isinstance(errors, list)
        and all(isinstance(x, dict) and {"track_id", "path", "message"} <= x.keys() for x in errors)
        and all(isinstance(value, str) for x in errors for value in x.values())
    )


def _shard_of(run: Mapping[str, Any]) -> Shard | None:
    """The part of its source that a run has been through, if it was one and no less."""
    options = run.get("options", {})
    if any(map(run.get, _CUT_SHORT)):
        return None
    less = {"limit", "file_pattern", "exclude", "retry_failed"} & options.keys()
    try:
        return None if less or "shard" not in options else Shard.parse(str(options["shard"]), {})
    except SettingError:
        return None


def failures_of(runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tracks that failed and were not built since, of runs, oldest first.

    They are those of each source's last whole run, and later.
    """
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        source, done, left = run.get("source"), set(run.get("retried", ())), set(run.get("skipped_tracks", ()))
        shard = _shard_of(run)
        found = {
            track: failure
            for track, failure in found.items()
            if failure["source"] != source
            or track in left  # to another build
            or not (run.get("whole") or track in done or (shard and shard.holds(track)))
        }
        for failure in run["errors"]:
            found[failure["track_id"]] = {**failure, "source": source, "time": run["began"]}
    return list(found.values())
