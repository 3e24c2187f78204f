"""What is done to a store on a small disk that fills up, or that is mounted read-only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featurestore.errors import StoreAccessError
from featurestore.spec import FeatureSpec
from featurestore.store.store import StoreReader as FeatureStore
from featurestore.store.writer import StoreWriter

from .conditions import STORE, State, small_tables, track, writer
from .exploring import scratch
from .forking import Report
from .invariants import observe, progress, require, sound
from .mounts import SmallDisk, with_small_disk
from .scenarios import store_with, without

LARGE = np.random.default_rng(0).standard_normal((8, 2, 256, 3)).astype(np.float32)
"""Raw features of three pages a segment."""

Change = Callable[[StoreWriter], None]


def put(w: StoreWriter) -> None:
    w.put("subject", {"raw": LARGE})


def append(w: StoreWriter) -> None:
    with w.track("subject") as t:
        for i in range(len(LARGE)):
            t.append(raw=LARGE[i : i + 1])


def pack(w: StoreWriter) -> None:
    w.pack()


CHANGES: dict[str, Change] = {"put": put, "append": append, "pack": pack}


def fill_up(name: str, *, of: str, new: bool = False) -> list[str]:
    """Do something with ever more room, "bytes" or "names", until it fits; give the errors until then.

    Parameters
    ----------
    new : bool
        Whether the track that is written is not there before.
    """
    change = CHANGES[name]
    others = {"Kept/1": track("Kept/1"), "later": track("later")}
    prepare, before = store_with(None if new else track("subject"), others=others)
    step = 2048 if of == "bytes" else 1

    def work(disk: SmallDisk, report: Report) -> None:
        with small_tables():
            prepare(disk.folder)
            for amount in range(0, 200 * step, step):
                with writer(disk.folder) as w:
                    disk.limit(**{"room" if of == "bytes" else "names": amount})
                    told = _refused(change, w)
                    if told is None:
                        break
                    report(told)
                    _intact(disk.folder, before)
                    left = os.listdir(w.path / ".featurestore" / "staging" / w.session.staging.path.name)
                    require(set(left) <= {"owner.lock"}, f"staged and not swept: {left}")
                    disk.limit()
                    if amount % (8 * step) == 0:  # the same writer goes on
                        change(w)
                        _restore(disk.folder, w, before)
                sound(disk.folder)
                _intact(disk.folder, before)
            else:
                raise AssertionError("it never fits")

    with scratch() as folder:
        ended = with_small_disk(folder, work)
    require(not ended.error and not ended.signal, f"ended badly: {ended}")
    return [str(told) for told in ended.reports]


def _refused(change: Change, w: StoreWriter) -> str | None:
    try:
        change(w)
    except StoreAccessError as error:
        return str(error)
    return None


def _intact(folder: Path, before: State) -> None:
    progress(observe(FeatureStore(folder / STORE)), before, before)


def _restore(folder: Path, w: StoreWriter, before: State) -> None:
    """Put back "subject", in which alone a store may differ, as it was."""
    seen = observe(FeatureStore(folder / STORE))
    progress(without("subject", seen), without("subject", before), without("subject", before))
    subject = before.get("subject")
    if subject is not None:
        w.put("subject", subject)
    elif "subject" in seen:
        w.remove("subject")


def create_on_full_disk() -> list[str]:
    """Create a store with ever more names, until it fits."""

    def work(disk: SmallDisk, report: Report) -> None:
        for names in range(40):
            disk.limit(names=names)
            try:
                writer(disk.folder).close()
                break
            except StoreAccessError as error:
                report(str(error))
            require(not (disk.folder / STORE).exists(), "half a store")
        disk.limit()
        with writer(disk.folder) as w:
            w.put("one", track("one"))
        sound(disk.folder)
        require(os.listdir(disk.folder / "music") == ["store.zarr"], "something is left beside the store")

    with scratch() as folder:
        ended = with_small_disk(folder, work)
    require(not ended.error and not ended.signal, f"ended badly: {ended}")
    return [str(told) for told in ended.reports]


def read_only() -> list[str]:
    """Read a store on a disk that is read-only, and try to change it; give the errors."""
    prepare, before = store_with(track("subject"))
    spec = FeatureSpec.for_arrays(layers=2, dim=3)

    def work(disk: SmallDisk, report: Report) -> None:
        with small_tables():
            prepare(disk.folder)
            held = FeatureStore(disk.folder / STORE)
            progress(observe(held), before, before)
            disk.set_read_only(True)
            for store in (held, FeatureStore(disk.folder / STORE)):
                progress(observe(store), before, before)
                require(store.verify(deep=True).ok, "the check fails")
                for change in (lambda s=store: s.remove("subject"), store.pack):
                    try:
                        change()
                    except StoreAccessError as error:
                        report(str(error))
            for path in (disk.folder / STORE, disk.folder / "new"):
                try:
                    StoreWriter(path, spec=spec)
                except StoreAccessError as error:
                    report(str(error))
            disk.set_read_only(False)
            progress(observe(held), before, before)
            sound(disk.folder)

    with scratch() as folder:
        ended = with_small_disk(folder, work)
    require(not ended.error and not ended.signal, f"ended badly: {ended}")
    return [str(told) for told in ended.reports]
