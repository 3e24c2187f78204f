"""A writer is taken for dead by another, which does its track; then it goes on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

from featurestore.errors import TrackLockedError
from featurestore.store.commit import silence
from featurestore.store.paths import StorePaths
from featurestore.store.store import StoreReader as FeatureStore

from .conditions import STORE, State, track, writer
from .exploring import Findings, copy_of, prepared, record, told
from .fault_actions import Pause
from .forking import Child
from .invariants import observe, require, same, sound
from .scenarios import Operation
from .steps import watch

HEIRS = track("subject", 5)


def stopped(name: str, *, plain: bool = False) -> Findings:
    """Stop an operation before every step, while another writer comes and goes.

    Steps, in the findings, are those at which the track was taken from it.
    """
    findings = Findings()
    with prepared(name, plain=plain) as (operation, folder):
        states, steps, _ = record(operation, folder)
        for number, kind in enumerate(steps, 1):
            findings.points += 1
            with copy_of(folder) as copy:
                try:
                    if _lost(operation, states, number, copy):
                        findings.steps.append(kind)
                except Exception as error:
                    findings.violations.append(told(f"taken over before step {number} ({kind})", error))
    return findings


def both_stopped(name: str, *, plain: bool = False) -> Findings:
    """Stop an operation before every step, and its heir before every step as well; the first goes on first.

    Steps, in the findings, are those of the first at which the track was taken from it.
    """
    findings = Findings()
    with prepared(name, plain=plain) as (operation, folder):
        states, steps, _ = record(operation, folder)
        for number, kind in enumerate(steps, 1):
            heirs, ends = 0, False
            while not ends:
                findings.points += 1
                heirs += 1
                with copy_of(folder) as copy:
                    try:
                        lost, ends = _race(operation, states, number, heirs, copy)
                    except Exception as error:
                        where = f"stopped before step {number} ({kind}), and its heir before its step {heirs}"
                        findings.violations.append(told(where, error))
                        break
                    if lost:
                        findings.steps.append(kind)
    return findings


def _operate(operation: Operation, folder: Path, number: int) -> Child:
    def work(report: Callable[[object], None]) -> None:
        with operation.conditions():
            watch(Pause(number))
            try:
                for _ in operation.run(folder):
                    report("done")
            except TrackLockedError:
                report("lost")

    return Child(work)


@contextlib.contextmanager
def _hearing_nobody(operation: Operation) -> Iterator[None]:
    """To this process all others are silent."""
    quiet = mock.patch.object(logging.getLogger("featurestore"), "disabled", True)  # a warning is a write, too
    with operation.conditions(), mock.patch.object(silence, "SILENCE", 0.0), quiet:
        yield


def _lost(operation: Operation, states: Sequence[State], number: int, folder: Path) -> bool:
    first, taken = _operate(operation, folder, number), False
    try:
        require(first.stops(), "did not stop")
        with _hearing_nobody(operation), writer(folder) as other:
            with contextlib.suppress(TrackLockedError):
                other.put("subject", HEIRS)
                taken = True
            if taken:
                seen = observe(FeatureStore(folder / STORE))
                require(same(seen.get("subject"), HEIRS), "the heir's track is another's")
    finally:
        ended = first.ends()
    require(not ended.signal and not ended.error, f"was disturbed: {ended}")
    lost = "lost" in ended.reports
    require(taken or not lost, "nobody has the track")
    _check(operation, states, folder, theirs=not lost, heirs=taken)
    return lost


def _race(
    operation: Operation, states: Sequence[State], number: int, of_heir: int, folder: Path
) -> tuple[bool, bool]:
    def work(report: Callable[[object], None]) -> None:
        with _hearing_nobody(operation):
            watch(Pause(of_heir))
            try:
                with writer(folder) as other:
                    other.put("subject", HEIRS)
                report("done")
            except TrackLockedError:
                report("lost")

    first = _operate(operation, folder, number)
    try:
        require(first.stops(), "did not stop")
        heir = Child(work)
        try:
            ends = not heir.stops()
        finally:
            one = first.ends()
    finally:
        two = heir.ends()
    for ended in (one, two):
        require(not ended.signal and not ended.error, f"was disturbed: {ended}")
    lost, taken = "lost" in one.reports, "done" in two.reports
    require(taken or not lost, "nobody has the track")
    _check(operation, states, folder, theirs=not lost, heirs=taken)
    return lost, ends


def _check(operation: Operation, states: Sequence[State], folder: Path, *, theirs: bool, heirs: bool) -> None:
    """The track is whole, of one who believes to have written it; nothing else has changed or is left."""
    paths, after = StorePaths(folder / STORE), states[-1]
    finals = [*([after["subject"]] if theirs else []), *([HEIRS] if heirs else [])]
    with operation.conditions():
        writer(folder).close()
        seen = observe(FeatureStore(folder / STORE))
        require(any(same(seen.get("subject"), final) for final in finals), "the track is nobody's")
        require(all(same(seen.get(x), after[x]) for x in after if x != "subject"), "other tracks have changed")
        sound(folder)
    require(not paths.dead.exists() or not any(paths.dead.iterdir()), "the dead are not swept")
