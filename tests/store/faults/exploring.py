"""Interrupt an operation at every step, and look at what is left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from featurestore.store.commit.flock import lock_file, unlock
from featurestore.store.paths import StorePaths
from featurestore.store.store import StoreReader as FeatureStore

from .alike import same_ids
from .conditions import OPENED, STORE, State, plain_file_system
from .forking import Ended, in_child
from .invariants import ViolationError, check, leftovers, require
from .operations import OPERATIONS
from .scenarios import Operation
from .steps import FaultAction, Perform, Step, watch


@dataclass
class Findings:
    """What came of interrupting an operation again and again.

    Attributes
    ----------
    points : int
        How often it was interrupted.
    steps : list of str
        Kinds of the steps at which it was.
    sites : set of (str, int)
        Lines of the store that were being executed then, or where nothing but a sync lies between: (file, line).
    violations : list of str
        What must not be.
    """

    points: int = 0
    steps: list[str] = field(default_factory=list)
    sites: set[tuple[str, int]] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder, in memory where there is one: nothing here needs a real disk to be in sync.

    FEATURESTORE_FAULTS_ON names a folder on another file system (an overlay, a FUSE one) to be tried instead.
    """
    memory = Path(os.environ.get("FEATURESTORE_FAULTS_ON", "/dev/shm"))
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def prepared(name: str, *, plain: bool) -> Iterator[tuple[Operation, Path]]:
    """An operation, if wanted on a plain file system, and a folder with what is there before it."""
    operation = OPERATIONS[name]
    if plain:
        operation = dataclasses.replace(operation, conditions=plain_file_system)
    now = time.time_ns

    def long_ago() -> int:
        return now() - 10**10

    with scratch() as top:
        folder = top / "before"
        folder.mkdir()
        # Some time ago, so that readers trust the folders' times of change.
        with operation.conditions(), mock.patch("time.time_ns", long_ago):
            operation.prepare(folder)
        for place in ("aggregated", ".featurestore/stale"):
            path = folder / STORE / place
            if path.exists() and now() - path.stat().st_mtime_ns < 5 * 10**9:
                os.utime(path, ns=(long_ago(), long_ago()))
        yield operation, folder


def _copy_file(source: str, target: str) -> None:
    """Copy content, permissions and times: a third less work than `shutil.copy2`, many thousand times."""
    status = os.stat(source)
    with open(source, "rb", 0) as file, open(target, "xb", 0) as copy:
        copy.write(file.read())
        os.fchmod(copy.fileno(), status.st_mode & 0o7777)
        os.utime(copy.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy, symlinks=True, copy_function=_copy_file)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


Sites = frozenset[tuple[str, int]]


def record(operation: Operation, folder: Path) -> tuple[list[State], list[str], list[Sites]]:
    """States that an operation comes to, kinds of its steps, and the lines of the store that make each."""

    def work(report: Callable[[object], None]) -> None:
        steps: list[str] = []
        sites: list[Sites] = []

        def fault_action(step: Step, perform: Perform) -> Any:
            steps.append(step.kind)
            sites.append(step.sites())
            return perform()

        with operation.conditions():
            watch(fault_action)
            states = []
            for state in operation.run(copy):
                states.append(state)
                left = [name for name in leftovers(copy) if not name.startswith("staging")]
                # An empty folder waits for the next change.
                staged = [x for x in StorePaths(copy / STORE).staging.glob("*/*") if x.suffix != ".lock"]
                left += [str(x) for x in staged if not x.is_dir() or any(x.iterdir())]
                require(not left, f"left behind by what is done for good: {left}")
        report((states, steps, sites))

    with copy_of(folder) as copy:
        ended = in_child(work)
    require(not ended.error and not ended.signal, f"cannot even be done undisturbed: {ended}")
    (found,) = ended.reports
    return found  # type: ignore[return-value]


@dataclass(frozen=True)
class Attempt:
    """How an operation with a fault_action ended: the states it came to, the error that it raised, what is new."""

    ended: Ended
    states: int
    raised: BaseException | None
    trace: str
    left: list[str]


def attempt(fault_action: FaultAction, operation: Operation, folder: Path) -> Attempt:
    def work(report: Callable[[object], None]) -> None:
        OPENED.clear()
        there = set(leftovers(folder))
        with operation.conditions(), same_ids():
            watch(fault_action)
            raised, trace, locked = None, "", []
            try:
                for _ in operation.run(folder):
                    report(None)
            except (Exception, KeyboardInterrupt) as error:
                trace = traceback.format_exc()
                raised = error.with_traceback(None)
                if isinstance(error, KeyboardInterrupt):
                    for writer in OPENED:
                        writer.close()
                    locked = list(_locked(folder))
            report((raised, trace, sorted(set(leftovers(folder)) - there) + locked))

    ended = in_child(work)
    whole = bool(ended.reports) and ended.reports[-1] is not None
    raised, trace, left = ended.reports[-1] if whole else (None, "", [])  # type: ignore[misc]
    return Attempt(ended, len(ended.reports) - whole, raised, trace, left)


def _locked(folder: Path) -> Iterator[str]:
    """Locks of a store that somebody holds, be it this process."""
    for path in StorePaths(folder / STORE).locks.glob("*"):
        lock = lock_file(path)
        if lock is None:
            yield path.name
        else:
            unlock(lock)


def explore(
    name: str,
    plain: bool,
    fault_actions: Callable[[int, str], Iterator[tuple[str, FaultAction]]],
    judge: Judge,
    meanwhile: Callable[[Path], None] = lambda _: None,
    *,
    sample: bool = False,
) -> Findings:
    """Do an operation again and again, each time with another fault_action; after each, all that must hold does.

    Parameters
    ----------
    sample : bool
        Not at every step, but at the first that the same lines of the store make.
    """
    findings = Findings()
    with prepared(name, plain=plain) as (operation, folder):
        states, kinds, sites = record(operation, folder)
        chosen, seen = chosen_steps(sites, sample=sample), dict[str, State]()
        for number, (kind, lines) in enumerate(zip(kinds, sites, strict=True), 1):
            if number not in chosen:
                continue
            findings.sites |= lines
            actions = list(fault_actions(number, kind))
            findings.steps += [kind] if actions else []
            for what, fault_action in actions:
                findings.points += 1
                with copy_of(folder) as copy:
                    with operation.conditions():
                        held = _held(copy)
                    done = attempt(fault_action, operation, copy)
                    try:
                        judge(done, len(states), kind)
                        with operation.conditions():
                            meanwhile(copy)
                        between = around(operation, states, done.states)
                        check(copy, operation, *between, held=held, seen=seen)
                    except Exception as error:
                        findings.violations.append(told(f"{what} step {number} ({kind})", error, done.trace))
    return findings


def chosen_steps(sites: Sequence[Sites], *, sample: bool) -> set[int]:
    """Numbers of the steps that are looked at."""
    first: dict[object, int] = {}
    for number, lines in enumerate(sites, 1):
        first.setdefault(lines if sample else number, number)
    return set(first.values())


Judge = Callable[[Attempt, int, str], None]


def around(operation: Operation, states: Sequence[State], done: int) -> tuple[State | None, State]:
    """The state that was reached and the next one."""
    return states[done - 1] if done else operation.before, states[min(done, len(states) - 1)]


def _held(folder: Path) -> FeatureStore | None:
    """A reader that has looked at the store before it changes."""
    if not (folder / STORE / "zarr.json").exists():
        return None
    store = FeatureStore(folder / STORE)
    assert store.track_ids is not None
    return store


def told(where: str, error: Exception, trace: str = "") -> str:
    lines = [] if isinstance(error, ViolationError) else traceback.format_exception(error)
    return "\n".join([f"{where}: {error}", *lines, trace])
