"""What a build says of itself: Progress on the way, TrackDone of each track, and BuildReport at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore._html import html_table
from featurestore.amounts import hours_in_words, time_in_words
from featurestore.audio import AudioFile

STAGES = ("looking for audio", "opening the model", "checking", "extracting", "packing", "done")

_SHOWN = 10  # failures in a notebook


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Tells where a build stands.

    Attributes
    ----------
    stage : str
        One of `STAGES`.
    total, processed, cached, skipped, failed : int
        Tracks, as in `BuildReport`.
    checked : int
        Tracks looked at in the stage "checking".
    track : str or None
        Id of the track that was at hand last.
    audio_seconds : float
        Audio encoded by this run, tracks at hand included.
    audio_seconds_total : float
        Audio that this run has to encode, as far as the files say their length.
    elapsed : float
        Seconds since the build began.
    x_real_time : float or None
        Seconds of audio per second of encoding; None before anything was encoded.
    eta : float or None
        Seconds that the rest should take; None while unknown.
    waited_for_audio, waited_for_store : float
        Seconds of the encoding, of which `BuildReport` has the shares.
    """

    stage: str
    total: int = 0
    checked: int = 0
    processed: int = 0
    cached: int = 0
    skipped: int = 0
    failed: int = 0
    track: str | None = None
    audio_seconds: float = 0.0
    audio_seconds_total: float = 0.0
    elapsed: float = 0.0
    x_real_time: float | None = None
    eta: float | None = None
    waited_for_audio: float = 0.0
    waited_for_store: float = 0.0

    @property
    def done(self) -> int:
        """Tracks about which nothing is left to do."""
        return self.processed + self.cached + self.skipped + self.failed


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A track that could not be extracted, and why."""

    track_id: str
    path: str
    error: str
    message: str

    def __str__(self) -> str:
        return self.message if self.path in self.message else f"{self.path}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class TrackWarning:
    """What the user should know of a track that was extracted all the same."""

    track_id: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Tells what a build did.

    Attributes
    ----------
    total_files : int
        Tracks of the source, after `limit`.
    processed, cached, skipped, failed : int
        Tracks extracted by this run; there, of the same settings and audio, by earlier or other runs; left undone
        because another process has them; not extracted because of an error.
    skipped_tracks : tuple of str
        The ids of those left undone.
    to_do : int
        Tracks that needed extraction when the run began.
    errors : tuple of Failure
        One for each failed track.
    warnings : tuple of TrackWarning
        Of tracks that were extracted: silence, clipping, a length that is not the stated one.
    interrupted : bool
        Ctrl-C or SIGTERM ended the run early; everything published before is in the store.
    dry_run : bool
        Nothing was written.
    elapsed_time : float
        Seconds, all in all.
    avg_time_per_file : float or None
        Seconds of encoding per processed track.
    audio_hours : float
        Hours of audio encoded by this run.
    x_real_time : float or None
        Seconds of audio per second of encoding.
    waited_for_audio, waited_for_store : float
        Shares of the time of encoding in which the model had to wait for decoded audio (more `workers` may help),
        and for features to be written; of several processes, their mean.
    audio_hours_to_do : float
        Hours of audio that needed extraction, as far as the files say their length.
    guessed : int
        Tracks to do whose files do not state their length; it is guessed, or unknown.
    estimated_bytes, free_bytes : int or None
        What the tracks to do were going to take on disk, and what was free, when the run began.
    orphans : tuple of str
        Tracks of the store whose files were in the source and are gone.
    pruned, moved : int
        How many of those were removed; tracks that were renamed, as their files were.
    store, model, revision, device, fingerprint : str or None
        Of what, with what and where it was built.
    feature_level : str
        The kinds that were asked for.

    Examples
    --------
    >>> report = build("music", "spectra.zarr", model="logmel", feature_level="segments")
    >>> report.total_files, report.processed, report.cached, report.failed
    (3, 3, 0, 0)
    >>> report.exit_code
    0
    """

    total_files: int = 0
    processed: int = 0
    cached: int = 0
    skipped: int = 0
    failed: int = 0
    skipped_tracks: tuple[str, ...] = ()
    to_do: int = 0
    errors: tuple[Failure, ...] = ()
    warnings: tuple[TrackWarning, ...] = ()
    interrupted: bool = False
    dry_run: bool = False
    elapsed_time: float = 0.0
    avg_time_per_file: float | None = None
    audio_hours: float = 0.0
    x_real_time: float | None = None
    waited_for_audio: float = 0.0
    waited_for_store: float = 0.0
    audio_hours_to_do: float = 0.0
    guessed: int = 0
    estimated_bytes: int | None = None
    free_bytes: int | None = None
    orphans: tuple[str, ...] = ()
    pruned: int = 0
    moved: int = 0
    store: str | None = None
    model: str | None = None
    revision: str | None = None
    device: str | None = None
    fingerprint: str | None = None
    feature_level: str = "all"

    @property
    def not_reached(self) -> int:
        """Tracks that the run did not come to."""
        return self.total_files - self.processed - self.cached - self.skipped - self.failed

    @property
    def exit_code(self) -> int:
        """0 done or a dry run, 1 some tracks failed, 3 some are left undone to others, 130 interrupted."""
        if self.interrupted or self.dry_run:
            return 130 if self.interrupted else 0
        return 3 if self.skipped else 1 if self.failed else 0

    def _repr_html_(self) -> str:
        counts = ("total_files", "processed", "cached", "skipped", "failed")
        rows = {"store": self.store, "model": self.model, **{name: getattr(self, name) for name in counts}}
        rows["audio"] = hours_in_words(self.audio_hours_to_do if self.dry_run else self.audio_hours)
        rows["x real time"] = None if self.x_real_time is None else f"{self.x_real_time:.1f}"
        rows["time"] = time_in_words(self.elapsed_time)
        errors = {f"failed: {failure.track_id}": failure.message for failure in self.errors[:_SHOWN]}
        more = len(self.errors) - _SHOWN
        return html_table("BuildReport", {**rows, **errors, "...": f"{more} more failed" if more > 0 else None})

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values.

        Examples
        --------
        >>> report = build("music", "spectra.zarr", model="logmel", dry_run=True)
        >>> report.to_dict()["to_do"]
        3
        """
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class TrackDone:
    """What became of a track about which nothing is left to do.

    Attributes
    ----------
    track : AudioFile
        The track and its file.
    outcome : {"processed", "cached", "skipped", "failed"}
        What it counts as, as in `BuildReport`.
    planned : float
        The length that the plan expected, seconds.
    seconds : float
        The length of the audio that was encoded, seconds.
    error : BaseException or None
        Why it has failed.
    warnings : sequence of str
        What the user should know of it.
    """

    track: AudioFile
    outcome: str
    planned: float = 0.0
    seconds: float = 0.0
    error: BaseException | None = None
    warnings: Sequence[str] = ()
