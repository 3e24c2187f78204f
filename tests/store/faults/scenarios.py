"""What is done to a store: what is there before, and what is there after each part that is done for good."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from featurestore.spec import KINDS
from featurestore.store.commit import silence
from featurestore.store.commit.flock import lock_file, unlock
from featurestore.store.commit.locks import TrackLocks
from featurestore.store.commit.staging import OWNER
from featurestore.store.paths import StorePaths
from featurestore.store.writer import StoreWriter

from .conditions import (
    STORE,
    State,
    Track,
    small_tables,
    track,
    writer,
)

Run = Callable[[Path], Iterator[State]]


@dataclass(frozen=True)
class Operation:
    """Something that is done to a store and may be interrupted anywhere.

    Parameters
    ----------
    name : str
        Of the operation.
    prepare : callable
        Makes what is there before, in an empty folder.
    before : mapping
        What readers see then; None where there is no store.
    run : callable
        Does it, and gives after each part that is done for good what readers see from then on. Can be done again.
    conditions : context manager
        Under which it is all done.
    packs : bool
        Whether all tracks are in the packed table afterwards.
    damaged : bool
        Whether the store is damaged before.
    keeps : str, optional
        End of the path of a file of "subject" that is somewhere in the store, whatever happens.
    """

    name: str
    prepare: Callable[[Path], None]
    before: State | None
    run: Run
    conditions: Callable[[], contextlib.AbstractContextManager[None]] = small_tables
    packs: bool = False
    damaged: bool = False
    keeps: str | None = None


OTHERS: State = {
    "Kept/1": track("Kept/1"),
    "later": track("later", 0, ("segments", "aggregated")),
}


def store_with(
    subject: Track | None = None, *, pack: bool = True, others: State = OTHERS
) -> tuple[Callable[[Path], None], State]:
    """A store in which "later" and nothing else is not packed."""
    tracks = {**others, **({} if subject is None else {"subject": subject})}

    def prepare(folder: Path) -> None:
        (folder / "music").mkdir()
        with writer(folder) as w:
            for name, arrays in tracks.items():
                if name != "later":
                    w.put(name, arrays)
            if pack:
                w.pack()
            if "later" in tracks:
                w.put("later", tracks["later"])

    return prepare, tracks


def putting(name: str, arrays: Track, before: State) -> Run:
    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            w.put(name, arrays)
            yield {**before, name: arrays}

    return run


@contextlib.contextmanager
def locked_by_the_dead(folder: Path, name: str) -> Iterator[None]:
    """The writer of a track is dead, its locks are held all the same, and others have heard nothing of it."""
    paths = StorePaths(folder / STORE)
    names = {area.parent.name for place in (paths.staging, paths.dead) for area in place.glob(f"*/{name}")}
    areas = [paths.staging / owner for owner in names if (paths.staging / owner).exists()]
    quiet = mock.patch.object(logging.getLogger("featurestore"), "disabled", True)  # a warning is a write, too
    with contextlib.ExitStack() as stack, mock.patch.object(silence, "SILENCE", 0.0), quiet:
        for area in areas:  # none if a writer has swept it, to which the locks did not show
            owner = lock_file(area / OWNER)
            assert owner is not None
            stack.callback(unlock, owner)
        if areas:
            stack.enter_context(TrackLocks(paths.locks).holding(name))
        yield


def taking_over(name: str, arrays: Track, before: State) -> Run:
    """Put a track that a dead writer holds."""
    put = putting(name, arrays, before)

    def run(folder: Path) -> Iterator[State]:
        with locked_by_the_dead(folder, name):
            yield from put(folder)
        writer(folder).close()  # sweeps what the dead have left, as their locks have ended

    return run


def without(name: str, state: State) -> State:
    return {key: value for key, value in state.items() if key != name}


def removing(name: str, before: State) -> Run:
    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            if w.existing(name) is not None:
                w.remove(name)
            yield without(name, before)

    return run


def packing_again(after: State) -> Run:
    """Pack, and again after a track has come and gone: then the table is right but for its mtime token."""

    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            assert w.pack()
            yield after
            w.put("passing", track("passing"))
            yield {**after, "passing": track("passing")}
            w.remove("passing")
            yield after
            assert w.pack()
            yield after

    return run


def packing_(after: State) -> Run:
    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            assert w.pack()
            yield after

    return run


def sealing_(after: State, *, back: bool = False) -> Run:
    """Pack, and seal all tracks, or bring them back into folders."""

    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            assert w.pack(seal=not back)
            yield after

    return run


def opening(after: State | None) -> Run:
    """Only open the store and close it: recovery and sweeping."""

    def run(folder: Path) -> Iterator[State]:
        with writer(folder):
            yield after or {}

    return run


def streaming(before: State) -> Run:
    """Publish in pieces, give up on the way, publish again; pack with rows waiting in a file."""
    arrays = track("subject", 2)

    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            with contextlib.suppress(ZeroDivisionError), w.track("subject") as t:
                t.append(raw=arrays["raw"][:1], segments=arrays["segments"][:1])
                raise ZeroDivisionError
            with w.track("subject") as t:
                for i in range(len(arrays["raw"])):
                    t.append(raw=arrays["raw"][i : i + 1], segments=arrays["segments"][i : i + 1])
                t.set_aggregated(arrays["aggregated"])
            yield {**before, "subject": arrays}
            w.pack()
            yield {**before, "subject": arrays}

    return run


def life(folder: Path) -> Iterator[State]:
    """All sorts of changes, one after the other, by two writers."""
    state: dict[str, Track] = {}

    def put(w: StoreWriter, name: str, revision: int, kinds: tuple[str, ...] = KINDS) -> State:
        state[name] = track(name, revision, kinds)
        w.put(name, state[name])
        return dict(state)

    with writer(folder) as w, writer(folder) as other:
        yield put(w, "one", 0)
        yield put(other, "two", 0, ("aggregated",))
        yield put(w, "one", 1, ("segments", "aggregated"))
        w.pack()
        yield dict(state)
        yield put(other, "two", 1)
        w.remove("one")
        del state["one"]
        yield dict(state)
        yield put(w, "one", 2)
        other.pack()
        yield dict(state)
        w.remove("two")
        del state["two"]
        yield dict(state)
        w.pack()
        yield dict(state)
