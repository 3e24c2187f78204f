"""What a build has to do, found out before the model runs: which tracks, how much audio, how many bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featurestore.amounts import bytes_in_words, hours_in_words
from featurestore.audio import AudioFile, file_sha256, read_header
from featurestore.audio.info import file_status
from featurestore.errors import (
    AudioError,
    CorruptTrackError,
    ExtractionError,
    FeatureStoreError,
    StoreAccessError,
    TrackNotFoundError,
)
from featurestore.pipeline.prefetch import AHEAD_MB
from featurestore.spec import FEATURE_LEVELS, KINDS, FeatureSpec
from featurestore.store import StoreWriter, estimate_bytes
from featurestore.store.reading import free_bytes, free_files

_log = logging.getLogger("featurestore")

_FILES_OF_A_STORE = 50  # and of its table


@dataclass(frozen=True, kw_only=True)
class TrackPlan:
    """What is to be done about one track."""

    number: int  # its place in the source
    track: AudioFile
    cached: bool = False  # the store has it, so that nothing is to be done
    replaces: bool = False  # the new features take the space of old ones
    seconds: float = 0.0  # of audio; 0 where the file does not say
    guessed: bool = False  # the file does not state its length: `seconds` is a guess, or 0
    segments: int = 0
    frames: int = 0  # of all segments together
    error: FeatureStoreError | OSError | None = None  # why the file cannot be used

    @property
    def to_do(self) -> bool:
        """Whether the track is to be extracted."""
        return not self.cached and self.error is None


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of a build that are not the encoder's; what is not explained here is as in `build`."""

    store: Path
    kinds: tuple[str, ...]  # what is stored of each track
    # Settings without leave to extract again for: what the store has, and what is asked for.
    refused: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    extends: FeatureSpec | None = None  # of the store that this one will replace, as it has more layers
    workers: int = 1
    ahead_mb: int = AHEAD_MB
    dtype: str = "float32"
    codec: str = "none"
    force: bool = False
    dry_run: bool = False
    fail_fast: bool = False
    dataset: str | None = None
    root: str | None = None  # folder of the source, if tracks of files that are gone are to be looked for
    prune: bool = False
    seal: bool | None = None
    packs: bool = True  # whether the build ends with packing
    wait_for_others: float = 0.0  # seconds

    def is_satisfied_by(self, existing: Mapping[str, Any] | None, track: AudioFile, spec: FeatureSpec) -> bool:
        """Tell whether a published track has these settings, these kinds and this file's audio.

        The audio is compared by the size and the time of change of the file, or else by its SHA-256.

        Parameters
        ----------
        existing : mapping or None
            Attributes of the published track, None if there is none.
        track : AudioFile
            The file.
        spec : FeatureSpec
            The settings of the build's features.

        Raises
        ------
        AudioNotFoundError, AudioFormatError
            If the file cannot be read.
        """
        if self.force or existing is None or existing.get("fingerprint") != spec.fingerprint:
            return False
        if not set(self.kinds) <= set(existing.get("kinds", ())):
            return False
        audio = existing.get("audio")
        if not isinstance(audio, Mapping):
            return False
        try:
            now = track.path.stat()
        except (OSError, ValueError):
            now = file_status(track.path)  # says what is wrong with the file
        if audio.get("size") != now.st_size:
            return False
        return audio.get("mtime_ns") == now.st_mtime_ns or audio.get("sha256") == file_sha256(track.path)


def plan_track(
    number: int, track: AudioFile, published: Mapping[str, Any] | None, job: Job, spec: FeatureSpec
) -> TrackPlan:
    """Look at a track: does the store have it, and if not, how long is it? No model is needed.

    `published` are the attributes of the store's track of this id, None if there is none.
    """
    try:
        if job.is_satisfied_by(published, track, spec):
            return TrackPlan(number=number, track=track, cached=True)
        info = None if track.seconds else read_header(track.path)
    except (FeatureStoreError, OSError) as error:
        return TrackPlan(number=number, track=track, error=error)
    return TrackPlan(
        number=number,
        track=track,
        replaces=published is not None and set(job.kinds) <= set(published.get("kinds", ())),
        seconds=track.seconds or (0.0 if info is None else info.duration or 0.0),
        guessed=track.guessed if info is None else info.frames is None,
    )


def plan_windows(
    plans: Iterable[TrackPlan], sample_rate: int | None, planned: Callable[[int], tuple[int, int]]
) -> list[TrackPlan]:
    """Say how many windows and frames tracks have that are to be done.

    `planned` gives the windows of a track of so many samples at `sample_rate` (Hz), and the frames of them all.
    """
    found = []
    for plan in plans:
        if plan.to_do:
            samples = round(plan.seconds * (sample_rate or 0))
            try:
                segments, frames = planned(max(1, samples))
                plan = replace(plan, segments=segments, frames=frames) if samples else replace(plan, guessed=True)
            except ExtractionError as error:
                plan = replace(plan, seconds=0.0, error=ExtractionError(f"{plan.track.path}: {error}"))
        found.append(plan)
    return found


def bytes_needed(plans: Iterable[TrackPlan], spec: FeatureSpec, kinds: Sequence[str]) -> int:
    """Return what the tracks to do will add to the store at most, bytes.

    A track that replaces one of the same kinds takes that one's space, after both have been there for a moment.
    """
    to_do = [plan for plan in plans if plan.segments]
    new = [plan for plan in to_do if not plan.replaces]
    passing = [
        estimate_bytes(spec, kinds, tracks=1, segments=plan.segments, frames=plan.frames)
        for plan in to_do
        if plan.replaces
    ]
    added = estimate_bytes(
        spec,
        kinds,
        tracks=len(new),
        segments=sum(plan.segments for plan in new),
        frames=sum(plan.frames for plan in new),
    )
    return added + max(passing, default=0)


def published_attributes(
    read: Callable[[str], Mapping[str, Any] | None], track_id: str
) -> Mapping[str, Any] | None:
    """Return the attributes of a track; None if there is none, or a damaged one, which is extracted again."""
    try:
        return read(track_id)
    except TrackNotFoundError:
        return None
    except CorruptTrackError as error:
        _log.warning("%s: %s", track_id, error)
        return None


def is_published(writer: StoreWriter, job: Job, plan: TrackPlan) -> bool:
    """Tell whether the store has the features of a track by now."""
    published = published_attributes(writer.existing, plan.track.track_id)
    try:
        return job.is_satisfied_by(published, plan.track, writer.spec)
    except AudioError:
        return False  # decoding says what is wrong with the file


def check_free_space(plans: Sequence[TrackPlan], spec: FeatureSpec, kinds: Sequence[str], store: Path) -> None:
    """Refuse a build that cannot fit on the disk; warn of one that may not, by lengths that are guessed.

    Raises
    ------
    StoreAccessError
        Names what is needed, what is free, and settings that need less.
    """
    _check_files(plans, kinds, store)
    needed, free = bytes_needed(plans, spec, kinds), free_bytes(store.absolute())
    if needed <= free:
        return
    stated = [plan for plan in plans if not plan.guessed]
    if bytes_needed(stated, spec, kinds) <= free:
        _log.warning(
            "the features need about %s, and %s are free; %d files do not state their length, so this is a guess",
            bytes_in_words(needed),
            bytes_in_words(free),
            len(plans) - len(stated),
        )
        return
    ways = [
        (f"`feature_level={level!r}`", bytes_needed(plans, spec, of_level))
        for level, of_level in FEATURE_LEVELS.items()
        if len(of_level) < len(kinds)
    ]
    if spec.dtype != "float16":
        ways.append(("`dtype='float16'`", bytes_needed(plans, replace(spec, dtype="float16"), kinds)))
    if len(spec.layers) > 1:
        layer = spec.layers[len(spec.layers) // 2]
        ways.append((f"`layers=[{layer}]`", bytes_needed(plans, replace(spec, layers=(layer,)), kinds)))
    hours = sum(plan.seconds for plan in plans) / 3600
    what = ", ".join(kind for kind in KINDS if kind in kinds)
    raise StoreAccessError(
        f"store {store}: the features ({what}) of {hours_in_words(hours)} of audio need "
        f"about {bytes_in_words(needed)}, and {bytes_in_words(free)} are free. Free some space, or choose less: "
        + ", ".join(f"{option} ({bytes_in_words(size)})" for option, size in ways)
    )


def _check_files(plans: Sequence[TrackPlan], kinds: Sequence[str], store: Path) -> None:
    """Refuse a build for whose files the disk has no names left."""
    # A folder, its metadata and a shard for each kind; what is replaced is there beside it for a moment.
    each = 3 * len(kinds)
    new = sum(plan.to_do and not plan.replaces for plan in plans)
    needed, free = each * (new + 1) + _FILES_OF_A_STORE, free_files(store.absolute())
    if new and free is not None and needed > free:
        raise StoreAccessError(
            f"store {store}: {new} tracks need about {needed:,} files and folders, and the disk has names "
            f"(inodes) for {free:,} more, however much room it has (df -i): remove files that nobody needs, use "
            "another disk, or choose less: `feature_level='aggregated'`, or `limit`"
        )
