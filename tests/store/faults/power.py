"""Loss of power: what may be on a disk afterwards, given what was done and what was synced.

The model. Entries of a folder change in order: of what was not synced any first part may be there, and a rename is
there in both of its folders or in neither. An fsync of a folder makes all changes of its entries so far stay. What
was written to a file since its last fsync may be there, not be there, be cut short or be zeros, whether or not its
entry is there. In the loose model not even the order within a folder holds, only that of changes to the same name
or of the same file.
"""

from __future__ import annotations

import fcntl
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .steps import SYNCS, WRITES, Perform, Step


@dataclass(eq=False)
class Node:
    """A file or a folder."""

    folder: bool
    entries: dict[str, Node] = field(default_factory=dict)  # as they are now
    stored: dict[str, Node] = field(default_factory=dict)  # as they were at the beginning
    modified: int = 0
    content: bytes = b""  # as it is now
    synced: bytes = b""


@dataclass(eq=False)
class Change:
    """A change of entries, or of a folder's time of change."""

    puts: list[tuple[Node, str, Node | None]]
    modified: list[tuple[Node, int]]
    needs: list[Change]
    synced: bool = False

    def sync(self) -> None:
        """It stays from now on, and so does what it rests on."""
        todo = [self]
        while todo:
            change = todo.pop()
            if not change.synced:
                change.synced = True
                todo += change.needs


class Disk:
    """What a process did to a folder, and what may be left of it.

    Parameters
    ----------
    top : Path
        The folder, as it is at the beginning; all of that is synced.
    loose : bool
        Whether changes of a folder may be there without those before them.
    """

    def __init__(self, top: Path, *, loose: bool = False) -> None:
        self.top = top
        self.loose = loose
        self.root = self._read(top)
        self.changes: list[Change] = []
        self._last: dict[object, Change] = {}
        self._of: dict[Node, list[Change]] = {}

    def _read(self, path: Path) -> Node:
        if not path.is_dir():
            content = path.read_bytes()
            return Node(False, content=content, synced=content)
        entries = {name: self._read(path / name) for name in os.listdir(path)}
        return Node(True, entries, dict(entries), path.stat().st_mtime_ns)

    def _find(self, path: str) -> tuple[Node, str]:
        *parts, name = Path(path).relative_to(self.top).parts
        node = self.root
        for part in parts:
            node = node.entries[part]
        return node, name

    def _node(self, path: str) -> Node:
        if Path(path) == self.top:
            return self.root
        folder, name = self._find(path)
        return folder.entries[name]

    def _change(self, puts: list[tuple[str, Node | None]], times: dict[str, int]) -> None:
        placed = [(*self._find(path), node) for path, node in puts]
        modified = [(self._node(path), moment) for path, moment in times.items()]
        touched: list[object] = [folder for folder, _ in modified]
        if self.loose:
            touched = [
                item for folder, name, node in placed for item in ((folder, name), node) if item is not None
            ]
            touched += [] if placed else [folder for folder, _ in modified]
        change = Change(placed, modified, [self._last[item] for item in touched if item in self._last])
        self.changes.append(change)
        for item in touched:
            self._last[item] = change
        for folder, _ in modified:
            self._of.setdefault(folder, []).append(change)
        for folder, name, node in placed:
            if node is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = node

    def apply(self, done: Done) -> None:
        """Take note of a step that was done."""
        kind, paths, times = done.kind, done.paths, dict(done.modified)
        if kind == "fsync":
            node = self._node(paths[0])
            node.synced = node.content
            for change in self._of.get(node, []):
                change.sync()
        elif kind == "write":
            self._node(paths[0]).content = done.content
        elif kind == "create":
            self._change([(paths[0], Node(False))], times)
        elif kind == "mkdir":
            self._change([(paths[0], Node(True, modified=times.pop(paths[0])))], times)
        elif kind == "remove":
            self._change([(paths[0], None)], times)
        elif kind == "rename":
            self._change([(paths[0], None), (paths[1], self._node(paths[0]))], times)
        elif kind == "exchange":
            self._change([(paths[0], self._node(paths[1])), (paths[1], self._node(paths[0]))], times)
        elif kind == "link":
            self._change([(paths[1], self._node(paths[0]))], times)
        elif kind == "utime":
            self._change([], times)
        else:
            raise AssertionError(f"{kind} is no step that is known")

    def lose_power(self, folder: Path, stays: Callable[[], bool], content: Callable[[Node], bytes]) -> None:
        """Make a folder of what may be left.

        Parameters
        ----------
        folder : Path
            To make.
        stays : callable
            Whether the next change that was not synced, and may be there, is.
        content : callable
            Content of a file.
        """
        there: set[Change] = set()
        entries: dict[Node, dict[str, Node]] = {}
        modified: dict[Node, int] = {}
        for change in self.changes:
            if change.synced or (all(need in there for need in change.needs) and stays()):
                there.add(change)
                for parent, name, node in change.puts:
                    names = entries.setdefault(parent, dict(parent.stored))
                    if node is None:
                        names.pop(name, None)
                    else:
                        names[name] = node
                modified.update(change.modified)
        self._write(self.root, folder, entries, modified, content)

    def _write(
        self,
        node: Node,
        path: Path,
        entries: dict[Node, dict[str, Node]],
        modified: dict[Node, int],
        content: Callable[[Node], bytes],
    ) -> None:
        if not node.folder:
            path.write_bytes(content(node))
            return
        path.mkdir()
        for name, below in entries.get(node, node.stored).items():
            self._write(below, path / name, entries, modified, content)
        moment = modified.get(node, node.modified)
        os.utime(path, ns=(moment, moment))


@dataclass(frozen=True)
class Done:
    """A change, and the lines that made it: content of a file, and times of change of folders, afterwards."""

    kind: str
    paths: tuple[str, ...]
    content: bytes = b""
    modified: dict[str, int] = field(default_factory=dict)
    sites: frozenset[tuple[str, int]] = frozenset()


class Recorder:
    """Reports every step that was done as `Done`."""

    def __init__(self, report: Callable[[object], None]) -> None:
        self.report = report

    def __call__(self, step: Step, perform: Perform) -> Any:
        kind, paths = told(step)
        if kind == "open":
            kind = "write" if os.path.lexists(paths[0]) else "create"
        result = perform()
        failed = kind == "exchange" and result
        if not failed and not any(path.endswith(" (deleted)") for path in paths):
            content = Path(paths[0]).read_bytes() if kind == "write" else b""
            modified = {path: os.stat(path).st_mtime_ns for path in _touched(kind, paths)}
            self.report(Done(kind, paths, content, modified, step.sites()))
        return result


def _touched(kind: str, paths: tuple[str, ...]) -> set[str]:
    """Folders whose time of change changes."""
    if kind in ("write", "fsync"):
        return set()
    if kind == "utime":
        return set(paths)
    if kind == "link":
        return {os.path.dirname(paths[1])}
    return {*map(os.path.dirname, paths), *(paths if kind == "mkdir" else ())}


def told(step: Step) -> tuple[str, tuple[str, ...]]:
    """Kind, in fewer words, and absolute paths."""
    args, options = step.args, step.options
    if step.kind in (*WRITES, *SYNCS, "ftruncate", "fallocate"):
        return "fsync" if "sync" in step.kind else "write", (_path_of(args[0]),)
    if step.kind in ("rename", "replace", "link", "exchange"):
        kind = "rename" if step.kind == "replace" else step.kind
        return kind, (
            _absolute(args[0], options.get("src_dir_fd")),
            _absolute(args[1], options.get("dst_dir_fd")),
        )
    kind = "remove" if step.kind in ("unlink", "rmdir") else step.kind
    return kind, (_absolute(args[0], options.get("dir_fd")),)


def _absolute(path: Any, folder: int | None) -> str:
    name = os.fsdecode(path)
    return name if folder is None else os.path.join(_path_of(folder), name)


def _path_of(fd: int) -> str:
    if sys.platform == "darwin":
        return fcntl.fcntl(fd, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()
    return os.readlink(f"/proc/self/fd/{fd}")


def damages(seed: int) -> Iterator[tuple[str, Callable[[], bool], Callable[[Node], bytes]]]:
    """Ways to lose what was not synced: all of it; only contents; only entries; at random."""
    choose = random.Random(seed)

    def zeros(node: Node) -> bytes:
        return node.synced if node.synced == node.content else bytes(len(node.content))

    def damaged(node: Node) -> bytes:
        if node.synced == node.content:
            return node.synced
        part = choose.randrange(len(node.content) + 1)
        return choose.choice([node.synced, node.content, node.content[:part], zeros(node)])

    yield "all that was not synced is lost", lambda: False, lambda node: node.synced
    if seed % 2:
        yield "contents that were not synced are lost", lambda: True, lambda node: node.synced
        yield "contents that were not synced are zeros", lambda: True, zeros
    while True:
        share = choose.random()
        yield "lost at random", lambda share=share: choose.random() < share, damaged  # type: ignore[misc]
