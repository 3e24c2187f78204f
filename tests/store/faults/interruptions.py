"""What an operation is interrupted by, at every step."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from featurestore.errors import StoreAccessError, TrackLockedError
from featurestore.store.store import StoreReader as FeatureStore

from . import power
from .conditions import STORE, State, away, track, writer
from .exploring import Attempt, Findings, around, chosen_steps, copy_of, explore, prepared, record, told
from .fault_actions import NEEDS_ROOM, Fail, FailFrom, Interrupt, Kill, Pause
from .forking import Child, in_child
from .invariants import around_any, check, observe, progress, require, same, sound
from .scenarios import Operation
from .steps import SYNCS, WRITES, FaultAction, watch


def kill(
    name: str,
    *,
    plain: bool = False,
    moments: Sequence[str] = ("before", "torn", "after"),
    sample: bool = False,
    years: int = 0,
    host: str | None = None,
) -> Findings:
    """Kill an operation at every step, but not before one after a sync: the disk is as it was before the sync.

    Parameters
    ----------
    sample : bool
        Only at the first step that the same lines of the store make.
    years, host
        How far the clock is ahead of the first writer that comes afterwards, and what its host is called.
    """

    def meanwhile(folder: Path) -> None:
        if years or host:
            with away(years=years, host=host), writer(folder):
                pass

    synced = 0

    def fault_actions(number: int, kind: str) -> Iterator[tuple[str, FaultAction]]:
        nonlocal synced
        for moment in moments:
            if (moment != "torn" or kind in WRITES) and (moment != "before" or number - 1 != synced):
                yield f"killed {moment}", Kill(number, moment)
        if kind in SYNCS:
            synced = number

    def judge(done: Attempt, states: int, kind: str) -> None:
        require(done.ended.signal == signal.SIGKILL, f"was not killed: {done}")

    return explore(name, plain, fault_actions, judge, meanwhile, sample=sample)


def fail(name: str, *, plain: bool = False, sample: bool = False) -> Findings:
    """Let each step of an operation fail with an input/output error; `sample` as of `kill`."""

    def fault_actions(number: int, kind: str) -> Iterator[tuple[str, FaultAction]]:
        yield "EIO at", Fail(number)

    return explore(name, plain, fault_actions, _failed, sample=sample)


def read_only(name: str, *, plain: bool = False, sample: bool = False) -> Findings:
    """Let all steps of an operation fail from each one on, as on a file system that became read-only."""

    def fault_actions(number: int, kind: str) -> Iterator[tuple[str, FaultAction]]:
        yield "read-only from", FailFrom(number, errno.EROFS)

    return explore(name, plain, fault_actions, _failed, sample=sample)


def _failed(done: Attempt, states: int, kind: str) -> None:
    _refused_or_done(done, states)
    require(kind != "fsync" or done.raised is not None, "says that it is done, and may not be on the disk")


def fill_up(name: str, *, plain: bool = False, sample: bool = False) -> Findings:
    """Let the disk be full from each step of an operation on."""

    def fault_actions(number: int, kind: str) -> Iterator[tuple[str, FaultAction]]:
        yield "full from", FailFrom(number, errno.ENOSPC, NEEDS_ROOM)

    def judge(done: Attempt, states: int, kind: str) -> None:
        _refused_or_done(done, states)
        staged = [name for name in done.left if name.startswith("staging")]
        require(not staged or _while_opening(done), f"staging is not swept: {staged}")

    return explore(name, plain, fault_actions, judge, sample=sample)


def _refused_or_done(done: Attempt, states: int) -> None:
    require(not done.ended.signal and not done.ended.error, f"ended badly: {done}")
    if done.raised is None:
        require(done.states == states, "ended early, without an error")
    else:
        require(isinstance(done.raised, StoreAccessError), f"raised {done.raised!r}")
        require(STORE in str(done.raised), f"does not name the store: {done.raised}")


def interrupt(name: str, *, plain: bool = False, sample: bool = False) -> Findings:
    """Interrupt an operation by Ctrl-C at every step; what is staged is gone once the writer is closed."""

    def fault_actions(number: int, kind: str) -> Iterator[tuple[str, FaultAction]]:
        for moment in ("before", "after"):
            yield f"Ctrl-C {moment}", Interrupt(number, moment)

    def judge(done: Attempt, states: int, kind: str) -> None:
        require(not done.ended.signal and not done.ended.error, f"ended badly: {done}")
        require(isinstance(done.raised, KeyboardInterrupt), f"Ctrl-C came out as {done.raised!r}")
        left = [name for name in done.left if not name.startswith("trash")]
        require(not left or _while_opening(done), f"left after closing: {left}")

    return explore(name, plain, fault_actions, judge, sample=sample)


def pause(
    name: str, *, plain: bool = False, sample: bool = False, years: int = 0, host: str | None = None
) -> Findings:
    """Stop an operation before every step; meanwhile, another writer opens the store, puts a track and packs.

    Parameters
    ----------
    years : int
        How far the other writer's clock is ahead.
    host : str, optional
        What the other writer's host is called.
    """
    findings = Findings()
    with prepared(name, plain=plain) as (operation, folder):
        states, kinds, sites = record(operation, folder)
        for number in sorted(chosen_steps(sites, sample=sample)):
            kind = kinds[number - 1]
            findings.steps.append(kind)
            findings.points += 1
            with copy_of(folder) as copy:
                try:
                    _pause(operation, states, number, copy, years, host)
                except Exception as error:
                    findings.violations.append(told(f"while stopped before step {number} ({kind})", error))
    return findings


def _pause(
    operation: Operation, states: Sequence[State], number: int, folder: Path, years: int, host: str | None
) -> None:
    # Tracks that the operation does not write itself.
    free = {"Kept/1", "subject"} if operation.name.startswith("pack, ") else {"Kept/1"}
    changed = {name: track(name, 5) for name in ["other", *(free & states[-1].keys())]}

    def work(report: Callable[[object], None]) -> None:
        with operation.conditions():
            watch(Pause(number))
            for _ in operation.run(folder):
                report(None)

    child = Child(work)
    try:
        require(child.stops(), "did not stop")
        with operation.conditions(), away(years=years, host=host), writer(folder) as other:
            for name in list(changed):
                try:
                    with other.track(name, wait=0.0) as t:
                        t.append(raw=changed[name]["raw"], segments=changed[name]["segments"])
                        t.set_aggregated(changed[name]["aggregated"])
                except TrackLockedError:  # its mark is being looked at
                    require(name in free, f"{name} is locked")
                    del changed[name]
            other.pack()
            seen = observe(FeatureStore(folder / STORE))
            for name, arrays in changed.items():
                require(same(seen.get(name), arrays), f"{name} of the other writer is not what it was")
            rest = {name: arrays for name, arrays in seen.items() if name not in changed}
            others = [
                {name: s[name] for name in s if name not in changed} for s in [operation.before or {}, *states]
            ]
            around_any(rest, others)
    finally:
        ended = child.ends()
    require(not ended.signal and not ended.error, f"was disturbed: {ended}")
    require(len(ended.reports) == len(states), "did not come to its end")
    final = {**states[-1], **changed}
    with operation.conditions():
        progress(observe(FeatureStore(folder / STORE)), final, final)
        sound(folder)


def _while_opening(done: Attempt) -> bool:
    """Whether an error came before there was a writer that could be closed."""
    return re.search(r'staging\.py", line \d+, in __init__', done.trace) is not None


def lose_power(
    name: str, *, plain: bool = False, loose: bool = False, ways: int = 4, sample: bool = False
) -> Findings:
    """Lose power after each step of an operation, or (`sample`) those that other lines make, in some ways."""
    findings = Findings()
    with prepared(name, plain=plain) as (operation, folder):

        def work(report: Callable[[object], None]) -> None:
            with operation.conditions():
                watch(power.Recorder(report))
                for state in operation.run(copy):
                    report(state)

        with copy_of(folder) as copy:
            disk = power.Disk(copy, loose=loose)
            ended = in_child(work)
        require(not ended.error and not ended.signal, f"cannot even be done undisturbed: {ended}")
        states = [report for report in ended.reports if isinstance(report, dict)]
        chosen = chosen_steps(
            [report.sites for report in ended.reports if isinstance(report, power.Done)], sample=sample
        )
        number = done = 0
        seen: dict[str, State] = {}
        for report in ended.reports:
            if isinstance(report, power.Done):
                disk.apply(report)
                number += 1
                if number not in chosen:
                    continue
                findings.steps.append(report.kind)
            else:
                done += 1
            between = around(operation, states, done)
            for way, stays, content in itertools.islice(power.damages(number), ways):
                findings.points += 1
                left = folder.parent / "left"
                disk.lose_power(left, stays, content)
                try:
                    check(left, operation, *between, seen=seen)
                except Exception as error:
                    where = f"after step {number} ({findings.steps[-1:]}), {way}"
                    findings.violations.append(told(where, error))
                finally:
                    shutil.rmtree(left)
    return findings
