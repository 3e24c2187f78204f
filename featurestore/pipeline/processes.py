"""Several devices: one process each, which this one gives tracks to, and whose counts it adds up."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from featurestore.errors import ExtractionError, SettingError, StoreAccessError
from featurestore.pipeline.interrupts import Interrupts
from featurestore.pipeline.job import Job
from featurestore.pipeline.plan import TrackPlan
from featurestore.pipeline.report import Tally
from featurestore.pipeline.worker import Orders, work
from featurestore.spec import FeatureSpec
from featurestore.store import StoreWriter

MOST_DEATHS = 2
"""Processes that may die with a track at hand before it counts as failed: it may be what they die of."""

_FAREWELL = 20.0
"""Seconds that processes have to end in after they were asked to."""

_ADDED = ("processed", "cached", "skipped", "audio_seconds", "audio_seconds_total")

logger = logging.getLogger("featurestore")


@dataclass(eq=False)
class _Member:
    """A process, and what it has told."""

    device: str
    process: BaseProcess
    connection: Connection
    at_hand: dict[str, TrackPlan] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    idle: bool = False


class Crew:
    """Processes that extract tracks, a `Workforce`; made by `crew`."""

    def __init__(self, members: list[_Member], *, fail_fast: bool) -> None:
        self._members = members
        self._fail_fast = fail_fast
        self.spec = self._common_spec()
        self.device = ",".join(member.device for member in members)
        self._waiting: deque[TrackPlan] = deque()
        self._deaths: Counter[str] = Counter()

    def _common_spec(self) -> FeatureSpec:
        specs: dict[str, FeatureSpec] = {}
        for member in self._members:
            message = _heard(member)
            while message is not None and message[0] == "log":
                self._count(member, message, Tally())
                message = _heard(member)
            match message:
                case ("ready", spec):
                    specs[member.device] = spec
                case ("refused", error):
                    raise error
                case _:
                    member.process.join(_FAREWELL)
                    code = member.process.exitcode
                    raise ExtractionError(
                        f"the process of {member.device} ended before it began (exit code {code}); a script that "
                        'uses several devices calls build below `if __name__ == "__main__":`'
                    )
        first, *others = specs.items()
        for device, spec in others:
            if differences := first[1].differences(spec):
                listed = "; ".join(f"`{name}` is {a!r} and {b!r}" for name, (a, b) in differences.items())
                raise SettingError(
                    f"features of {first[0]} and {device} would differ ({listed}): choose devices of one kind"
                )
        return first[1]

    def frames(self, n_samples: int) -> int:
        """Frames of a window, or one more."""
        rate, frame_rate = self.spec.sample_rate, self.spec.frame_rate
        return 1 if rate is None or frame_rate is None else max(1, round(n_samples * frame_rate / rate))

    def run(
        self,
        plans: Iterable[TrackPlan],
        *,
        writer: StoreWriter,  # noqa: ARG002 - each process has one of its own
        interrupts: Interrupts,
        tally: Tally,
    ) -> None:
        """Have tracks extracted.

        A process that dies loses its tracks to the others; a track that `MOST_DEATHS` processes died with, or that
        no process is left for, counts as failed.

        Parameters
        ----------
        plans : iterable of TrackPlan
            All of which are to be done.
        writer : StoreWriter
            Of the store, which exists by now.
        interrupts : Interrupts
            Let in while the processes are waited for.
        tally : Tally
            Gets the counts of all processes.

        Raises
        ------
        StoreAccessError
            If a process cannot write the store any more.
        """
        self._waiting.extend(plans)
        mark = time.monotonic()
        with interrupts.held():
            for member in self._members:
                self._answer(member, True)
            while self._members:
                with interrupts.let_in():
                    ready = wait([member.connection for member in self._members])
                tally.encoding_seconds += (now := time.monotonic()) - mark
                mark = now
                for member in [member for member in self._members if member.connection in ready]:
                    self._hear(member, tally)
                if self._fail_fast and tally.failures:
                    self._waiting.clear()
                self._send_on(tally)

    def _hear(self, member: _Member, tally: Tally) -> None:
        """Take in one message of a process."""
        message = _heard(member)
        if message is None:
            self._bury(member, tally)
            return
        match message:
            case ("next",):
                plan = self._waiting.popleft() if self._waiting else None
                if plan is not None:
                    member.at_hand[plan.track.track_id] = plan
                self._answer(member, plan)
            case ("idle",):
                member.idle = True
            case ("stopped", reason):
                raise StoreAccessError(reason)
            case _:
                self._count(member, message, tally)

    def _count(self, member: _Member, message: tuple[Any, ...], tally: Tally) -> None:
        match message:
            case ("log", level, text):
                logger.log(level, "%s", text)
            case ("told", told):
                self._add(member, told, tally)
            case ("settled", track_id, failures, warnings, told):
                member.at_hand.pop(track_id, None)
                tally.failures += failures
                tally.warnings += warnings
                self._add(member, told, tally)

    def _add(self, member: _Member, told: Tally, tally: Tally) -> None:
        """Add what a process has done since it told last."""
        for name in _ADDED:
            setattr(tally, name, getattr(tally, name) + getattr(told, name) - getattr(member.tally, name))
        member.tally = told
        unfinished = sum(m.tally.furthest - m.tally.audio_seconds for m in self._members)
        tally.tell(told.track, seconds=max(0.0, unfinished))

    def _answer(self, member: _Member, answer: Any) -> None:
        with contextlib.suppress(OSError):  # it has died, which is heard next
            member.connection.send(answer)

    def _send_on(self, tally: Tally) -> None:
        """Give the idle something to do, or an end; what nobody is left for has failed."""
        idle = [member for member in self._members if member.idle]
        if self._waiting or not any(member.at_hand for member in self._members):
            for member in idle:
                member.idle = False
                self._answer(member, bool(self._waiting))
                if not self._waiting:
                    self._members.remove(member)
        if not self._members:
            while self._waiting:
                self._fail(self._waiting.popleft(), "no process is left to extract it", tally)

    def _bury(self, member: _Member, tally: Tally) -> None:
        """Give the tracks of a process that has died to others."""
        self._members.remove(member)
        member.process.join(_FAREWELL)
        logger.warning(
            "the process of %s ended with exit code %s; tracks that it had at hand: %d",
            member.device,
            member.process.exitcode,
            len(member.at_hand),
        )
        for plan in reversed(member.at_hand.values()):
            self._deaths[plan.track.track_id] += 1
            if self._deaths[plan.track.track_id] < MOST_DEATHS:
                self._waiting.appendleft(plan)
            else:
                self._fail(plan, f"{MOST_DEATHS} processes ended while they had it at hand", tally)

    def _fail(self, plan: TrackPlan, reason: str, tally: Tally) -> None:
        logger.info("%s failed: %s", plan.track.track_id, reason)
        tally.audio_seconds_total -= plan.seconds
        tally.fail(plan.track, ExtractionError(f"{plan.track.path}: {reason}"))
        tally.tell(plan.track.track_id)

    def dismiss(self) -> None:
        """Tell those that wait for their first tracks that there are none."""
        for member in self._members:
            self._answer(member, False)

    def farewell(self, tally: Tally) -> None:
        """Ask all processes to end, and count what they have done until then."""
        for member in self._members:
            member.process.terminate()
        deadline = time.monotonic() + _FAREWELL
        while self._members and (left := deadline - time.monotonic()) > 0:
            for connection in wait([member.connection for member in self._members], left):
                member = next(member for member in self._members if member.connection is connection)
                if (message := _heard(member)) is None:
                    self._members.remove(member)
                else:
                    self._count(member, message, tally)


@contextlib.contextmanager
def crew(job: Job, devices: Sequence[str], settings: Mapping[str, Any], tally: Tally) -> Iterator[Crew]:
    """Processes, one for each device, that end with the block.

    Parameters
    ----------
    job : Job
        What is to be built.
    devices : sequence of str
        The same one may be named several times; processes on the CPU share its cores.
    settings : mapping
        Arguments of `WindowEncoder`, without the device.
    tally : Tally
        Gets what they have done when the block is left early.

    Yields
    ------
    Crew

    Raises
    ------
    SettingError, ModelError
        If a process cannot open the model on its device, or their features would not be the same.
    ExtractionError
        If a process dies before it can begin.
    """
    orders = [
        Orders(
            job=job,
            extractor={**settings, "device": device},
            sharing=devices.count("cpu") if device == "cpu" else 1,
            log_level=logger.getEffectiveLevel(),
        )
        for device in devices
    ]
    context = multiprocessing.get_context("spawn")
    members: list[_Member] = []
    processes: list[BaseProcess] = []
    with contextlib.ExitStack() as stack:
        for one in orders:
            ours, theirs = context.Pipe()
            stack.callback(ours.close)
            process: BaseProcess = context.Process(target=work, args=(theirs, one), daemon=True)
            # Ctrl-C reaches all processes of a terminal: only this one listens, and asks the others to end.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
                stack.callback(_end, process)
                processes.append(process)
                members.append(_Member(str(one.extractor["device"]), process, ours))
            finally:
                theirs.close()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        made = Crew(members, fail_fast=job.fail_fast)
        try:
            yield made
        except BaseException:
            made.farewell(tally)
            raise
        made.dismiss()
        for process in processes:
            process.join(_FAREWELL)


def _heard(member: _Member) -> tuple[Any, ...] | None:
    """The next message of a process; None if it has ended."""
    try:
        message: tuple[Any, ...] = member.connection.recv()
    except (EOFError, OSError):
        return None
    return message


def _end(process: BaseProcess) -> None:
    """End a process that has been told to end, or was not needed."""
    process.terminate()
    process.join(_FAREWELL)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
