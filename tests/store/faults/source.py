"""What the store's source says about changes of the disk."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from .steps import KINDS, LIBRARY, STORE

_CHANGING = {*KINDS, "open", *LIBRARY}
# What changes the disk behind the back of featurestore.store.filesystem: modules, and methods of paths and arrays.
_MODULES = {
    "ctypes",
    "io",
    "mmap",
    "shutil",
    "subprocess",
    "tempfile",
    "posix",
    "fileinput",
    "sqlite3",
    "h5py",
    "zarr",
}
_METHODS = {
    *(
        "chmod",
        "hardlink_to",
        "lchmod",
        "mkdir",
        "open",
        "rename",
        "rmdir",
        "symlink_to",
        "tofile",
        "touch",
        "unlink",
    ),
    *("write_bytes", "write_text", "dump", "savez", "save", "savetxt", "makedirs", "removedirs"),
}


def text(module: str) -> str:
    return (STORE / module).read_text()


def tree(module: str) -> ast.Module:
    return ast.parse(text(module))


def modules() -> list[str]:
    """Modules of the store, but for the one that changes the disk, and those of HDF5, which write no store."""
    found = [path.relative_to(STORE) for path in STORE.rglob("*.py") if path != STORE / "filesystem.py"]
    return sorted(str(path) for path in found if path.parts[0] != "hdf5")


def _called(node: ast.Call) -> tuple[str, str]:
    """Owner (a name, or "") and name of what is called."""
    if isinstance(node.func, ast.Name):
        return "", node.func.id
    if isinstance(node.func, ast.Attribute):
        return node.func.value.id if isinstance(node.func.value, ast.Name) else "?", node.func.attr
    return "?", "?"


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    return (found for found in ast.walk(node) if isinstance(found, ast.Call))


def stray_changes(module: str) -> Iterator[str]:
    """Places of a module that change the disk by themselves."""
    for node in ast.walk(tree(module)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
            names += [f"os.{alias.name}" for alias in node.names] if node.module == "os" else []
        for name in names:
            if name.split(".")[0] in _MODULES or name.startswith("os."):
                yield f"{module}:{node.lineno} imports {name}"  # type: ignore[attr-defined]
    for call in _calls(tree(module)):
        owner, name = _called(call)
        if owner == "os":
            stray = name in _METHODS - {"open"} or (name in _CHANGING and not _only_reads(call))
        elif owner == "filesystem":
            stray = False
        elif name == "open":
            stray = not owner or bool(set(_mode(call)) <= set("rwxabt+") and set(_mode(call)) & set("wxa+"))
        elif name == "replace":  # of a path; a string's has two arguments
            stray = len(call.args) == 1 and not call.keywords
        elif name == "memmap":
            stray = _mode(call) != "r"
        else:
            stray = name in _METHODS
        if stray:
            yield f"{module}:{call.lineno} calls {owner}.{name}"


def _only_reads(call: ast.Call) -> bool:
    return _called(call)[1] == "open" and bool(_names(call) & {"READ", "OPEN_DIR", "O_RDONLY"})


def _names(node: ast.AST) -> set[str]:
    attributes = {found.attr for found in ast.walk(node) if isinstance(found, ast.Attribute)}
    return attributes | {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def _mode(call: ast.Call) -> str:
    """Mode of an open or a memmap of numpy, if it is written there."""
    texts = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return texts[-1] if texts else ""


_OWNERS = ("os", "shutil", "?")


@cache
def changers() -> frozenset[str]:
    """Functions of filesystem.py that change the disk, by themselves or through each other."""
    functions = {node.name: node for node in tree("filesystem.py").body if isinstance(node, ast.FunctionDef)}
    found: set[str] = set()
    while True:
        more = {
            name
            for name, function in functions.items()
            for call in _calls(function)
            if name not in found
            and (_called(call)[1] in found or (_called(call)[0] in _OWNERS and _changes(call)))
        }
        if not more:
            return frozenset(found)
        found |= more


def _changes(call: ast.Call) -> bool:
    name = _called(call)[1]
    if name == "open":
        return bool(_names(call) & {"O_CREAT", "O_TRUNC"})
    return name in _CHANGING or name in ("rmtree", "copyfile")


def call_sites() -> dict[tuple[str, int], tuple[int, str]]:
    """Where the store calls for a change: (file, first line) to (last line, function)."""
    elsewhere = ((module, call) for module in modules() for call in _calls(tree(module)))
    calls = [(module, call) for module, call in elsewhere if _called(call)[0] == "filesystem"]
    calls += [("filesystem.py", call) for call in _calls(tree("filesystem.py"))]
    return {
        (module, call.lineno): (call.end_lineno or call.lineno, _called(call)[1])
        for module, call in calls
        if (_called(call)[0] in ("filesystem", "") and _called(call)[1] in changers())
        or (module == "filesystem.py" and _called(call)[0] in _OWNERS and _changes(call))
    }
