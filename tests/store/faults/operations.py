"""The operations that are interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from featurestore.spec import KINDS
from featurestore.store.format.metadata import encode_document, root_document
from featurestore.store.paths import StorePaths

from .conditions import (
    SPEC,
    STORE,
    State,
    closed_tracks,
    fixed_folders,
    no_links,
    small_memory,
    too_deep,
    track,
    two_threads,
    writer,
)
from .forking import in_child
from .scenarios import (
    Operation,
    Run,
    life,
    opening,
    packing_,
    packing_again,
    putting,
    removing,
    store_with,
    streaming,
    taking_over,
    without,
)
from .steps import Perform, Step, watch


def interrupted(run: Run, prepare: Callable[[Path], None], at: Callable[[Step], bool]) -> Callable[[Path], None]:
    """A store in which another writer died right after the first step that is like this."""

    def prepare_and_kill(folder: Path) -> None:
        prepare(folder)

        def fault_action(step: Step, perform: Perform) -> Any:
            result = perform()
            if at(step) and not (step.kind == "exchange" and result):  # which not all file systems have
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        def work(_: Callable[[object], None]) -> None:
            watch(fault_action)
            list(run(folder))

        ended = in_child(work)
        assert ended.signal == signal.SIGKILL, ended

    return prepare_and_kill


def into(step: Step, *parts: str) -> bool:
    """Whether the step puts a folder there."""
    if step.kind not in ("rename", "exchange"):
        return False
    return Path(os.fsdecode(step.args[1])).parent.parts[-len(parts) :] == parts


def _with_stale_dirs(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    """Dead writers' staging, half-emptied trash, and an entry of the journal that says nothing."""
    begin = putting("subject", track("subject", 1), {})
    killed = interrupted(begin, prepare, lambda step: step.kind == "fsync")

    def prepare_with_stale_dirs(folder: Path) -> None:
        killed(folder)
        paths = StorePaths(folder / STORE)
        for where in (paths.trash / "0123", paths.journal / "later", paths.journal / "nobody" / "raw"):
            where.mkdir(parents=True)
            (where / "zarr.json").write_text("{")
        (paths.trash / "file").write_text("{")
        (paths.trash / "0123" / "below" / "deeper").mkdir(parents=True)
        (paths.staging / f"{socket.gethostname()}.1.0123").mkdir()

    return prepare_with_stale_dirs


def _without_hidden(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare_and_hide(folder: Path) -> None:
        prepare(folder)
        shutil.rmtree(StorePaths(folder / STORE).hidden)

    return prepare_and_hide


def _without_raw(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare_and_remove(folder: Path) -> None:
        prepare(folder)
        shutil.rmtree(StorePaths(folder / STORE).kind("raw"))

    return prepare_and_remove


def _with_damage(prepare: Callable[[Path], None], *where: str) -> Callable[[Path], None]:
    def prepare_and_damage(folder: Path) -> None:
        prepare(folder)
        path = Path(folder / STORE, *where)
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        path.write_bytes(content)

    return prepare_and_damage


def _repairing(after: State) -> Run:
    def run(folder: Path) -> Iterator[State]:
        with writer(folder) as w:
            w.repair()
            yield after

    return run


def _half_made(folder: Path) -> None:
    """What a writer left that died while it made the store."""
    for name in (".featurestore/locks", f".featurestore/staging/{socket.gethostname()}.1.0123", "raw"):
        (folder / STORE / name).mkdir(parents=True)
    (folder / STORE / ".featurestore/staging" / f"{socket.gethostname()}.1.0123" / "zarr.json").write_text("{")


def _empty_folder(folder: Path) -> None:
    (folder / STORE).mkdir(parents=True)


def _operations() -> Iterator[Operation]:
    new = track("subject", 1)
    prepare, before = store_with()
    yield Operation("new track", prepare, before, putting("subject", new, before))
    yield Operation("new track, two threads", prepare, before, putting("subject", new, before), two_threads)
    for name, was, becomes in [
        ("overwrite, same kinds", KINDS, KINDS),
        ("overwrite, fewer kinds", KINDS, ("aggregated",)),
        ("overwrite, more kinds", ("aggregated",), KINDS),
        ("overwrite, other kinds", ("raw", "aggregated"), ("segments", "aggregated")),
    ]:
        prepare, before = store_with(track("subject", 0, was))
        yield Operation(name, prepare, before, putting("subject", track("subject", 1, becomes), before))
    prepare, before = store_with(track("subject"))
    yield Operation("remove", prepare, before, removing("subject", before))
    yield Operation("pieces and files", prepare, before, streaming(before), small_memory, packs=True)

    bare, before = store_with(track("subject"), pack=False)
    yield Operation("pack, first time", bare, before, packing_(before), packs=True)
    prepare, before = store_with(track("subject"))
    yield Operation("pack, more tracks", prepare, before, packing_(before), packs=True)
    changed = {**before, "subject": new}
    overwritten = _then(prepare, putting("subject", new, before))
    yield Operation("pack, after overwriting", overwritten, changed, packing_(changed), packs=True)
    fewer = without("Kept/1", before)
    yield Operation(
        "pack, after removing", _then(prepare, removing("Kept/1", before)), fewer, packing_(fewer), packs=True
    )
    same, fewer = _then(prepare, removing("later", before)), without("later", before)
    yield Operation("pack, nothing new", same, fewer, packing_(fewer), packs=True)
    yield Operation("pack, again", prepare, before, packing_again(before), packs=True)
    # Names of chunks that the new table does not have, and a store of format 1.
    smaller = _then(_then(overwritten, packing_(changed)), removing("subject", changed))
    fewer = without("subject", changed)
    least = {**fewer, "Kept/1": track("Kept/1", 1)}
    smaller = _then(_then(smaller, packing_(fewer)), putting("Kept/1", least["Kept/1"], fewer))
    yield Operation("pack, fewer chunks", smaller, least, packing_(least), packs=True)
    yield Operation("pack, older format", _of_format_1(bare), before, packing_(before), packs=True)
    broken = _with_damage(prepare, "packed", "features", "c.0.0.0")
    unread = {**before, "Kept/1": None, "subject": None}
    yield Operation("pack, damaged table", broken, unread, _repairing(before), damaged=True)

    yield Operation("create", _half_made, None, opening({}))
    yield Operation("create in an empty folder", _empty_folder, None, opening({}))
    # The table is out of date, and what says so is gone.
    bared = _without_hidden(overwritten)
    yield Operation("make the hidden folder again", bared, changed, opening(changed))
    yield Operation("create without links", lambda _: None, None, opening({}), no_links)
    yield Operation("life", lambda _: None, None, life)

    # Folders that cannot be renamed, as those of an image in a container.
    prepare, before = store_with(track("subject"))
    after = {**before, "subject": track("subject", 1, ("aggregated",))}
    becomes = putting("subject", after["subject"], before)
    yield Operation("overwrite, fixed folders", prepare, before, becomes, fixed_folders)
    yield Operation(
        "pack, fixed folders", _then(prepare, becomes), after, packing_(after), fixed_folders, packs=True
    )
    # A change that was decided on and could not be carried out, until now.
    killed = interrupted(putting("subject", new, before), prepare, lambda step: into(step, "journal"))
    refused = {**before, "subject": new}
    yield Operation("recover what could not be", _with_a_note(killed), before, opening(refused))
    yield Operation("take back what cannot be", killed, before, _repairing(before), closed_tracks, damaged=True)

    prepare, before = store_with(track("subject"))
    after = {**before, "subject": new}
    swap = putting("subject", new, before)
    for name, place in [("decided", ("journal",)), ("raw placed", ("raw",)), ("all placed", ("aggregated",))]:
        killed = interrupted(swap, prepare, lambda step, place=place: into(step, *place))
        seen = after if name == "all placed" else before
        yield Operation(f"recover, {name}", killed, seen, opening(after))
    fewer = without("subject", before)
    prepare, begun = store_with()
    killed = interrupted(putting("subject", new, begun), prepare, lambda step: into(step, "segments"))
    yield Operation("recover, new and in part", killed, begun, opening(begun))
    prepare, before = store_with(track("subject"))
    killed = interrupted(swap, prepare, lambda step: str(step.args[0]).endswith("/subject/aggregated"))
    yield Operation("take over", killed, before, taking_over("subject", new, before))
    killed = interrupted(removing("subject", before), prepare, lambda step: into(step, "journal"))
    yield Operation("recover a removal", killed, before, opening(fewer))
    yield Operation("sweep", _with_stale_dirs(prepare), before, opening(before))
    yield Operation("sweep, too deep", _with_stale_dirs(prepare), before, opening(before), too_deep)

    broken = _with_damage(prepare, "segments", "subject", "c.0.0.0")
    unread = {**before, "subject": None}
    yield Operation("repair", broken, unread, _repairing(fewer), damaged=True, keeps="segments/c.0.0.0")
    lost = _with_damage(store_with(track("subject", 0, ("aggregated",)), others={})[0], "segments", "zarr.json")
    alone: State = {"subject": track("subject", 0, ("aggregated",))}
    yield Operation("repair, structure", _without_raw(lost), alone, _repairing(alone), damaged=True)


def _with_a_note(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare_and_note(folder: Path) -> None:
        prepare(folder)
        StorePaths(folder / STORE).journal.joinpath("subject.failed").write_text("permission denied")

    return prepare_and_note


def _of_format_1(prepare: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare_and_go_back(folder: Path) -> None:
        prepare(folder)
        older = encode_document(root_document(SPEC, version=1))
        (folder / STORE / "zarr.json").write_bytes(older)

    return prepare_and_go_back


def _then(prepare: Callable[[Path], None], run: Run) -> Callable[[Path], None]:
    def prepare_and_run(folder: Path) -> None:
        prepare(folder)
        list(run(folder))

    return prepare_and_run


OPERATIONS = {operation.name: operation for operation in _operations()}
