"""The operations that are interrupted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from featurestore.spec import KINDS
from featurestore.store.format.metadata import encode_document, root_document
from featurestore.store.paths import StorePaths
from featurestore.store.sealing import seal

from .conditions import (
    SPEC,
    STORE,
    State,
    closed_tracks,
    damaged_bundles,
    fixed_folders,
    fixed_folders_and_bundles,
    no_links,
    small_bundles,
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
    sealing_,
    store_with,
    streaming,
    taking_over,
    without,
)
from .steps import Perform, Step, watch


def interrupted(
    run: Run,
    prepare: Callable[[Path], None],
    at: Callable[[Step], bool],
    conditions: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[Path], None]:
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
            with conditions():
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


def _operations_on_bundles() -> Iterator[Operation]:
    new, condition = track("subject", 1), small_bundles

    def sealed(prepare: Callable[[Path], None], state: State, *, back: bool = False) -> Callable[[Path], None]:
        return _then(prepare, sealing_(state, back=back), condition)

    plain, before = store_with(track("subject"))
    sealing, unsealing = sealing_(before), sealing_(before, back=True)
    yield Operation("seal", plain, before, sealing, condition, packs=True)
    prepare = sealed(plain, before)
    yield Operation("unseal", prepare, before, unsealing, condition, packs=True)
    after, fewer = {**before, "subject": new}, without("subject", before)
    overwriting = putting("subject", new, before)
    yield Operation("overwrite, sealed", prepare, before, overwriting, condition)
    yield Operation("remove, sealed", prepare, before, removing("subject", before), condition)
    ragged = ("segments", "aggregated")
    others = {"Kept/1": track("Kept/1", 0, ragged), "later": track("later", 0, ragged)}
    bare, small = store_with(track("subject", 0, ragged), others=others)
    without_raw = sealed(bare, small)
    again, new_kept = track("subject", 1, ragged), track("Kept/1", 1, ragged)
    few = {**small, "subject": again}
    yield Operation(
        "overwrite, sealed without raw", without_raw, small, putting("subject", again, small), condition
    )
    less = removing("subject", small)
    yield Operation("remove, sealed without raw", without_raw, small, less, condition)
    twice = _then(without_raw, putting("subject", again, small), condition)
    yield Operation("seal, again", twice, few, sealing_(few), condition, packs=True)
    twice = _then(sealed(twice, few), putting("subject", small["subject"], few), condition)
    yield Operation("seal, a third time", twice, small, sealing_(small), condition, packs=True)
    left = _then(without_raw, less, condition)
    rest = without("subject", small)
    yield Operation("unseal, after removing", left, rest, sealing_(rest, back=True), condition, packs=True)
    heavy, kept = {**others, "later": track("later", 1, ragged)}, {"Kept/1": others["Kept/1"]}
    worn = _then(sealed(store_with(others=heavy)[0], heavy), removing("later", heavy), condition)
    yield Operation("seal, worn", worn, kept, sealing_(kept), condition, packs=True)
    alone = {"subject": new}
    dead = _then(sealed(store_with(new, others={})[0], alone), removing("subject", alone), condition)
    dead = _then(dead, putting("Kept/1", kept["Kept/1"], {}), condition)
    yield Operation("pack, a dead bundle", dead, kept, packing_(kept), condition, packs=True)
    placed = interrupted(sealing, plain, lambda step: into(step, "bundles"), condition)
    yield Operation("recover, sealed", placed, before, opening(before), condition)
    trashed = interrupted(sealing, plain, lambda step: into(step, ".featurestore", "trash"), condition)
    yield Operation("recover, sealed in part", trashed, before, opening(before), condition)
    fixed = fixed_folders_and_bundles
    yield Operation("seal, fixed folders", bare, small, sealing_(small), fixed, packs=True)
    shell = interrupted(
        sealing_(small), bare, lambda step: step.kind == "unlink" and step.args[0].name == "zarr.json", fixed
    )
    yield Operation("overwrite what is half sealed", shell, small, putting("Kept/1", new_kept, small), fixed)
    # What only hands, several writers and broken disks come to.
    superseding = putting("subject", again, small)
    unmarked = interrupted(superseding, without_raw, lambda step: into(step, "aggregated"), condition)
    yield Operation("seal, not marked", unmarked, few, sealing_(few), condition, packs=True)
    left = _with_a_copy_of_segments(bare, sealed(lambda _: None, small))
    yield Operation("unseal, beside a copy", left, small, sealing_(small, back=True), condition, packs=True)
    gone = without("subject", small)
    yield Operation("seal, and remove meanwhile", bare, small, _sealing_while("_place", gone), condition)
    yield Operation("seal, and overwrite meanwhile", bare, small, _sealing_while("_write", few), condition)
    broken = _with_damaged_bundle(without_raw, "segments/zarr.json")
    yield Operation("repair, metadata of a bundle", broken, small, _repairing(small), condition, damaged=True)
    marked = interrupted(less, without_raw, lambda step: "/removed/" in str(step.args[0]), condition)
    broken = _with_damaged_bundle(marked, "zarr.json")
    unread, rest = {**small, "subject": None, "Kept/1": None}, {"later": small["later"]}
    yield Operation("repair, a bundle", broken, unread, _repairing(rest), damaged_bundles, damaged=True)
    placed = interrupted(sealing, plain, lambda step: into(step, "bundles"), condition)
    yield Operation("remove, while folders are dropped", placed, before, removing("subject", before), condition)
    killed = interrupted(unsealing, prepare, lambda step: into(step, "segments"), condition)
    yield Operation("recover, unsealed in part", killed, before, opening(before), condition)
    decided = interrupted(removing("subject", before), prepare, lambda step: into(step, "journal"), condition)
    yield Operation("recover a removal, sealed", decided, before, opening(fewer), condition)
    decided = interrupted(overwriting, prepare, lambda step: into(step, "raw"), condition)
    yield Operation("recover, sealed and raw placed", decided, before, opening(after), condition)


def _sealing_while(step: str, after: State) -> Run:
    """Seal, while another writer removes or overwrites "subject" right before a step."""

    def run(folder: Path) -> Iterator[State]:
        def change() -> None:
            with writer(folder) as other:
                if "subject" in after:
                    other.put("subject", after["subject"])
                elif other.existing("subject") is not None:
                    other.remove("subject")

        place, write = seal.Sealing._place, seal.write_bundle

        def place_later(self: seal.Sealing, tracks: Sequence[Any], *rest: Any) -> int:
            change()
            return place(self, tracks, *rest)

        def write_later(reader: Any, tracks: Sequence[Any], new: Path) -> None:
            if any(found.track_id == "subject" for found in tracks):
                change()
            write(reader, tracks, new)

        with contextlib.ExitStack() as stack:
            if step == "_place":
                stack.enter_context(mock.patch.object(seal.Sealing, "_place", place_later))
            else:
                stack.enter_context(mock.patch.object(seal, "write_bundle", write_later))
            with writer(folder) as w:
                assert w.pack(seal=True)
                yield after

    return run


def _with_a_copy_of_segments(
    prepare: Callable[[Path], None], more: Callable[[Path], None]
) -> Callable[[Path], None]:
    """Segments of "subject" that are in their folder still, or again, when it is sealed."""

    def prepare_and_copy(folder: Path) -> None:
        prepare(folder)
        segments = folder / STORE / "segments" / "subject"
        shutil.copytree(segments, folder / "copy")
        more(folder)
        shutil.move(folder / "copy", segments)

    return prepare_and_copy


def _with_damaged_bundle(prepare: Callable[[Path], None], name: str) -> Callable[[Path], None]:
    """Damage of the first bundle that has "subject"."""

    def prepare_and_damage(folder: Path) -> None:
        prepare(folder)
        ids = (folder / STORE / "bundles").glob("*/track_id/c.0")
        bundle = next(path for path in ids if b"subject" in path.read_bytes()).parents[1]
        content = bytearray((bundle / name).read_bytes())
        content[1] ^= 1
        (bundle / name).write_bytes(content)

    return prepare_and_damage


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


def _then(
    prepare: Callable[[Path], None],
    run: Run,
    conditions: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Callable[[Path], None]:
    def prepare_and_run(folder: Path) -> None:
        prepare(folder)
        with conditions():
            list(run(folder))

    return prepare_and_run


OPERATIONS = {operation.name: operation for operation in (*_operations(), *_operations_on_bundles())}
