"""metrics.jsonl: one JSON object a line, of each few steps and each evaluation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from featurestore.errors import SettingError

METRICS = "metrics.jsonl"


class Metrics:
    """The file, and the clocks of what is written into it.

    Parameters
    ----------
    path : Path or None
        None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._spent: dict[str, float] = {}
        self._since = perf_counter()

    def rewind(self, step: int) -> bool:
        """Drop what was written after a step, by a run that was killed before its next checkpoint.

        Returns
        -------
        bool
            Whether an evaluation of that very step stays.

        Raises
        ------
        SettingError
            If the file cannot be read or written.
        """
        if self._path is None or not self._path.exists():
            return False
        kept, evaluated = [], False
        with _written(self._path):
            for line in self._path.read_text("utf-8").splitlines(keepends=True):
                try:
                    values = json.loads(line)
                except ValueError:
                    continue  # cut off by the end of the run
                if line.endswith("\n") and values.get("step", 0) <= step:
                    kept.append(line)
                    evaluated |= values.get("step") == step and "valid" in values
            aside = self._path.with_name(f".{self._path.name}.new")
            aside.write_text("".join(kept), "utf-8")
            os.replace(aside, self._path)
        return evaluated

    def write(self, values: Mapping[str, Any]) -> None:
        """Append a line; what is no number is null in it, as JSON has none."""
        if self._path is not None:
            with _written(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(of_json(values), allow_nan=False) + "\n")

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Count the seconds of a block under a name."""
        begun = perf_counter()
        try:
            yield
        finally:
            self._spent[name] = self._spent.get(name, 0.0) + perf_counter() - begun

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last lap, and the share that each name took of them."""
        now = perf_counter()
        elapsed = now - self._since
        shares = {name: round(x / elapsed, 4) for name, x in self._spent.items()}
        self._since, self._spent = now, {}
        return elapsed, shares


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror or error}") from error


def of_json(value: Any) -> Any:
    """A value with null for what is no number, as JSON has none."""
    if isinstance(value, Mapping):
        return {key: of_json(x) for key, x in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
