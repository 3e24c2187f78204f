"""Tally: the counts of a running build, of which its Progress and its BuildReport are made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from featurestore.pipeline.report import STAGES, BuildReport, Failure, Progress, TrackDone, TrackWarning


@dataclass
class Tally:
    """The counts of a running build."""

    listener: Callable[[Progress], None] | None = None  # called whenever something has changed
    on_done: Callable[[TrackDone], None] | None = None  # called with each track
    stage: str = STAGES[0]
    total: int = 0
    checked: int = 0
    processed: int = 0
    cached: int = 0
    skipped_tracks: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[TrackWarning] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    audio_seconds: float = 0.0
    audio_seconds_total: float = 0.0
    encoding_seconds: float = 0.0
    interrupted: bool = False
    waiting: set[str] = field(default_factory=set)  # tracks that have failed before, and not been tried again yet
    entered: list[tuple[str, float]] = field(default_factory=list)
    waited_for_audio: float = 0.0
    waited_for_store: float = 0.0
    furthest: float = 0.0
    began: float = field(default_factory=time.monotonic)
    final: BuildReport | None = None  # the report that was made last

    def enter(self, stage: str) -> None:
        """Begin the next stage."""
        self.stage = stage
        self.entered.append((stage, time.monotonic()))
        self.notify()

    def stages(self) -> dict[str, float]:
        """Return the seconds that each stage has taken by now."""
        found = dict.fromkeys((stage for stage, _ in self.entered), 0.0)
        ends = [moment for _, moment in self.entered[1:]] + [time.monotonic()]
        for (stage, begin), end in zip(self.entered, ends, strict=True):
            found[stage] += round(end - begin, 3)
        return found

    def add(self, done: TrackDone) -> None:
        """Count a track."""
        track_id, path = done.track.track_id, str(done.track.path)
        if done.error is not None:
            name = type(done.error).__name__
            self.failures.append(
                Failure(track_id=track_id, path=path, error=name, message=str(done.error) or name)
            )
        elif done.outcome == "skipped":
            self.skipped_tracks.append(track_id)
        else:
            setattr(self, done.outcome, getattr(self, done.outcome) + 1)
        self.warnings += [TrackWarning(track_id=track_id, path=path, message=text) for text in done.warnings]
        if done.outcome != "skipped":
            self.waiting.discard(track_id)
        if done.outcome == "processed":
            self.audio_seconds += done.seconds
        else:
            self.audio_seconds_total -= done.planned  # this run will never encode it
        if self.on_done is not None:
            self.on_done(done)

    def notify(self, track: str | None = None, *, seconds: float = 0.0) -> None:
        """Send the Progress to the listener, with the track at hand and the seconds encoded of unfinished ones."""
        if self.listener is None:
            return
        # What was told is not taken back when a track fails.
        self.furthest = audio = max(self.furthest, self.audio_seconds + seconds)
        spent = self.encoding_seconds
        speed = audio / spent if audio and spent else None
        left = max(0.0, self.audio_seconds_total - audio)
        self.listener(
            Progress(
                stage=self.stage,
                total=self.total,
                checked=self.checked,
                processed=self.processed,
                cached=self.cached,
                skipped=len(self.skipped_tracks),
                failed=len(self.failures),
                track=track,
                audio_seconds=audio,
                audio_seconds_total=self.audio_seconds_total,
                elapsed=time.monotonic() - self.began,
                x_real_time=speed,
                eta=left / speed if speed else None,
                waited_for_audio=self.waited_for_audio,
                waited_for_store=self.waited_for_store,
            )
        )

    def report(self) -> BuildReport:
        """Make the report, as of now."""
        spent = self.encoding_seconds
        self.final = BuildReport(
            total_files=self.total,
            processed=self.processed,
            cached=self.cached,
            skipped=len(self.skipped_tracks),
            failed=len(self.failures),
            skipped_tracks=tuple(sorted(self.skipped_tracks)),
            errors=tuple(self.failures),
            warnings=tuple(self.warnings),
            interrupted=self.interrupted,
            elapsed_time=time.monotonic() - self.began,
            avg_time_per_file=spent / self.processed if self.processed else None,
            audio_hours=self.audio_seconds / 3600,
            x_real_time=self.audio_seconds / spent if self.audio_seconds and spent else None,
            waited_for_audio=min(1.0, self.waited_for_audio / spent) if spent else 0.0,
            waited_for_store=min(1.0, self.waited_for_store / spent) if spent else 0.0,
            **self.facts,
        )
        return self.final
