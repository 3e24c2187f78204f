"""The errors of the library, grouped by what a caller would do about them.

::

    FeatureStoreError
    ├── SettingError            a setting is wrong: change the call or the option it names
    │   └── DeviceError         the device that was asked for is not on this machine, or full
    ├── MissingDependencyError  install the extra it names
    ├── SourceError             the source names no usable audio: fix the path or the list
    ├── AudioError              one file is unusable: repair or drop it, all others go on
    │   ├── AudioNotFoundError
    │   ├── AudioFormatError    cannot be decoded, or not to its end
    │   ├── AudioTooShortError
    │   └── AudioContentError   decodes, but to NaN or infinite samples
    ├── ModelError              the model cannot be used: choose another checkpoint
    │   ├── CheckpointError     a file of the checkpoint is missing, damaged, of another shape or unsafe
    │   └── HubUnreachableError give a local folder instead
    ├── TrainingError           a training diverged: change its recipe, or look at the windows that it names
    ├── ExtractionError         one track could not be encoded (out of memory at batch size 1): others go on
    ├── DeviceLostError         a card has failed in the middle: what is done is kept, run again in a new process
    └── StoreError
        ├── NotAStoreError      the path holds something else, or nothing
        ├── StoreVersionError   written by a newer release: upgrade
        ├── StoreAccessError    read-only, full or failing disk: free or remount it, then run again
        │   ├── TrackAccessError    one track belongs to somebody else: set its permissions right; others go on
        │   └── BuildStoppedError   the same on the way of a build: its report says what was done
        ├── SpecMismatchError   the store holds features of other settings: use another store
        ├── TrackNotFoundError
        ├── TrackExistsError    pass overwrite to replace it
        ├── TrackLockedError    another writer has this track: skip it
        └── CorruptTrackError   stored bytes are damaged: extract the track again

A message names a setting in backticks, by its keyword and, for a way out, with a value as a call has it:
"`overlap` must be ...", "try `dtype='float16'`". The command line shows its option in this place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class FeatureStoreError(Exception):
    """Base of every error that this library raises on purpose."""

    def __str__(self) -> str:  # KeyError would show the repr
        return Exception.__str__(self)


class SettingError(FeatureStoreError, ValueError):
    """A setting is wrong; the message names it, in backticks, and what it may be."""


class DeviceError(SettingError):
    """The device that was asked for is not on this machine, or has no memory left for the model."""


class MissingDependencyError(FeatureStoreError, ImportError):
    """An optional package is not installed or does not import; the message names the extra."""


class SourceError(FeatureStoreError):
    """The source of a build names no usable audio, or names it twice."""


class AudioError(FeatureStoreError):
    """One audio file cannot be used; the message names it."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """The audio file does not exist, or is a dangling link or a directory."""


class AudioFormatError(AudioError):
    """The audio file cannot be decoded, or not to its end."""


class AudioTooShortError(AudioError):
    """The audio file is shorter than the shortest allowed duration."""


class AudioContentError(AudioError):
    """The audio file decodes to samples that are no sound (NaN or infinite)."""


class ModelError(FeatureStoreError):
    """The model cannot be used."""


class CheckpointError(ModelError):
    """A file of the checkpoint is missing, damaged, unsafe, or not a network this library knows."""


class HubUnreachableError(ModelError):
    """The model hub cannot be reached and the model is not in the local cache."""


class TrainingError(FeatureStoreError):
    """A training diverged; the message names the windows that it was at."""


class ExtractionError(FeatureStoreError):
    """One track could not be encoded; other tracks are not affected."""


class DeviceLostError(FeatureStoreError):
    """A card has failed, and this process can compute nothing on it any more."""


class StoreError(FeatureStoreError):
    """Something about a store."""


class NotAStoreError(StoreError):
    """The path holds no feature store."""


class StoreVersionError(StoreError):
    """The store has a newer format than this release knows."""


class StoreAccessError(StoreError):
    """The store cannot be read or written: permissions, a full disk, a read-only or failing device."""


class TrackAccessError(StoreAccessError):
    """One track cannot be written, since its files or its lock are somebody else's; all others can."""


class BuildStoppedError(StoreAccessError):
    """A build had to stop, because the store cannot be written any more, or its card has failed.

    Attributes
    ----------
    report : featurestore.BuildReport
        What the build had done until then.

    Examples
    --------
    >>> from featurestore.errors import BuildStoppedError
    >>> error = BuildStoppedError("the disk is full", report=BuildReport(processed=3))
    >>> error.report.processed
    3
    """

    def __init__(self, message: str, *, report: Any = None) -> None:  # pickle makes it from the message
        super().__init__(message)
        self.report = report


class SpecMismatchError(StoreError):
    """The store holds features of other settings.

    Attributes
    ----------
    differences : dict of str to (stored, requested)
        The settings that differ.

    Examples
    --------
    >>> from featurestore.errors import SpecMismatchError
    >>> try:
    ...     StoreWriter("features.zarr", spec=FeatureSpec.for_arrays(layers=13, dim=1024))
    ... except SpecMismatchError as error:
    ...     error.differences
    {'dim': (768, 1024)}
    """

    def __init__(self, message: str, *, differences: Mapping[str, tuple[Any, Any]] | None = None) -> None:
        super().__init__(message)
        self.differences = dict(differences or {})


class TrackNotFoundError(StoreError, KeyError):
    """The store has no such track, or not this kind of feature of it.

    Attributes
    ----------
    close_matches : tuple of str
        Track ids of the store that look alike.

    Examples
    --------
    >>> from featurestore.errors import TrackNotFoundError
    >>> try:
    ...     FeatureStore("features.zarr").segments("rock/sonk")
    ... except TrackNotFoundError as error:
    ...     error.close_matches
    ('rock/song',)
    """

    def __init__(self, message: str, *, close_matches: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.close_matches = tuple(close_matches)


class TrackExistsError(StoreError):
    """The store already has this track and overwriting was not asked for."""


class TrackLockedError(StoreError):
    """Another writer is at work on this track.

    Attributes
    ----------
    same_track : bool
        False where the other writer says that it is at work on another track that shares the lock: try again.

    Examples
    --------
    >>> from featurestore.errors import TrackLockedError
    >>> spec = FeatureSpec.for_arrays(layers=1, dim=2)
    >>> with StoreWriter("mine.zarr", spec=spec) as one, StoreWriter("mine.zarr", spec=spec) as other:
    ...     with one.track("a", kinds=["segments"]) as track:
    ...         track.append(segments=np.ones((1, 1, 2)))
    ...         try:
    ...             other.put("a", {"aggregated": np.ones((1, 2))})
    ...         except TrackLockedError as error:
    ...             error.same_track
    True
    """

    def __init__(self, message: str, *, same_track: bool = True) -> None:
        super().__init__(message)
        self.same_track = same_track


class CorruptTrackError(StoreError):
    """The stored bytes of a track fail their checks."""
