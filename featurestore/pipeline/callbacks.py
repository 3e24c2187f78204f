"""Callbacks of a build: what others may do while it runs, without being able to stop it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from featurestore.pipeline.report import BuildReport, Progress, TrackDone
from featurestore.pipeline.tally import Tally

logger = logging.getLogger("featurestore")


class BuildCallback:
    """Follows a build; a subclass has the methods that it needs.

    They are called in the thread of the build, which waits for them. Their errors never stop it: the first of each
    callback is logged as a warning.

    Examples
    --------
    >>> class Names(BuildCallback):
    ...     def track(self, done):
    ...         print(done.track.track_id, done.outcome)
    >>> report = build("music", "spectra.zarr", model="logmel", limit=1, callbacks=[Names()])
    folk/air processed
    """

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Take the arguments of `featurestore.build`, before any work."""

    def progress(self, progress: Progress) -> None:
        """Take where the build stands, whenever something has changed."""

    def track(self, done: TrackDone) -> None:
        """Take what became of a track that was not in the store before."""

    def end(self, report: BuildReport | None) -> None:
        """Take the report; None if the build was refused before any work."""


@contextmanager
def follow(callbacks: Sequence[BuildCallback], tally: Tally, settings: Mapping[str, Any]) -> Iterator[None]:
    """Have callbacks follow the build that is counted by `tally`."""
    failed: set[int] = set()

    def call(name: str, value: Any) -> None:
        for number, callback in enumerate(callbacks):
            try:
                getattr(callback, name)(value)
            except Exception as error:
                if number not in failed:
                    failed.add(number)
                    name_of = type(callback).__name__
                    logger.warning(
                        "%s.%s failed, and the build goes on: %s", name_of, name, str(error) or repr(error)
                    )

    if not callbacks:
        yield
        return
    listener = tally.listener

    def progress(now: Progress) -> None:
        if listener is not None:
            listener(now)
        call("progress", now)

    tally.listener, tally.on_done = progress, lambda done: call("track", done)
    call("begin", settings)
    try:
        yield
    finally:
        call("end", tally.final)
