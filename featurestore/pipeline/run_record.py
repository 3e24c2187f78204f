"""What a build leaves for later: the record of its run."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import socket
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path
from typing import Any

from featurestore.errors import BuildStoppedError, StoreError
from featurestore.pipeline.tally import Tally
from featurestore.store.runs import write_run

_PACKAGES = ("featurestore", "numpy", "torch", "av", "transformers")
_CHOOSING = ("limit", "file_pattern", "exclude", "retry_failed", "shard")
"""Options by which a run leaves out some of its source."""

_NO_OPTIONS = ("retried", "left_out", "callbacks", "progress")

_log = logging.getLogger("featurestore")


@contextmanager
def recording(store: Path, options: Mapping[str, Any], tally: Tally) -> Iterator[None]:
    """Write down a build when it ends, whichever way, unless it was refused before it did anything."""
    began, stopped = datetime.now(UTC), None
    try:
        yield
    except BuildStoppedError as error:
        stopped = str(error)
        raise
    finally:
        refused = stopped is None and isinstance(sys.exception(), Exception)
        if not (refused or options["dry_run"]) and (store / "zarr.json").exists():
            try:
                write_run(store, _record(options, tally, began, stopped))
            except StoreError as error:  # the features are there all the same
                _log.warning("%s", error)


def _record(options: Mapping[str, Any], tally: Tally, began: datetime, stopped: str | None) -> dict[str, Any]:
    report = tally.report()
    given = {x: _plain(value) for x, value in options.items() if x not in _NO_OPTIONS and _is_said(value)}
    return {
        "began": began.isoformat(),
        "ended": datetime.now(UTC).isoformat(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "source": os.path.abspath(options["source"]),
        "options": given,
        "whole": not (tally.interrupted or stopped or report.not_reached or any(x in given for x in _CHOOSING)),
        "not_reached": report.not_reached,
        "retried": [x for x in options.get("retried", ()) if x not in tally.waiting],
        "left_out": options.get("left_out"),
        "stopped": stopped,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {"python": platform.python_version(), **_versions()},
        "stages": tally.stages(),
        **report.to_dict(),
    }


def _is_said(value: Any) -> bool:
    if isinstance(value, Collection) and not isinstance(value, str):
        return len(value) > 0
    return value is not None and value is not False


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            # Of what is imported it is at hand; to parse its metadata takes milliseconds.
            found[name] = str(getattr(sys.modules.get(name), "__version__", None) or version(name))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Integral):  # of numpy
        return int(value)
    return [_plain(x) for x in value] if isinstance(value, Collection) else str(value)
