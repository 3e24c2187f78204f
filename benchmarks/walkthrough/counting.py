"""Lines and calls of the tasks: of the page, and of the peers' files, which are not imported."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/walkthrough.md"
TOOLS = {"with_lhotse": "lhotse", "with_datasets": "datasets", "with_plain_loops": "plain loops"}
TASKS = (
    *("check", "extract", "look", "layer", "table", "similar", "probe", "report", "join", "loader"),
    *("hdf5", "subset", "merge", "take_over", "resume", "retry", "exclude", "frames", "query", "follow"),
)
FENCES = re.compile(r"(<!-- scene -->\n)?^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(
    r"(?<=<!-- the table, made by benchmarks/walkthrough -->\n).*?(?=<!-- end of the table -->)", re.DOTALL
)


def sections() -> list[tuple[str, str]]:
    """Title and text of each task of the page."""
    parts = re.split(
        r"^## \d+\. (.*)\n", PAGE.read_text(encoding="utf-8").partition("## How many")[0], flags=re.MULTILINE
    )
    return list(zip(parts[1::2], parts[2::2], strict=True))


def count_python(code: str) -> tuple[int, int]:
    """Lines and calls of Python."""
    tree = ast.parse(code)
    lines, calls = set(), 0
    for node in ast.walk(tree):
        calls += isinstance(node, ast.Call)
        if (
            isinstance(node, ast.stmt)
            and not isinstance(node, ast.Import | ast.ImportFrom)
            and not _is_docstring(node)
        ):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    text = code.splitlines()
    return sum(bool(text[number - 1].partition("#")[0].strip()) for number in lines), calls


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def count_section(text: str) -> tuple[int, int]:
    """Lines and calls of a task on the page, without those that set the scene."""
    lines = calls = 0
    for scene, language, code in FENCES.findall(text):
        if scene:
            continue
        if language == "bash":
            commands = [x for x in code.splitlines() if x.partition("#")[0].strip()]
            lines, calls = lines + len(commands), calls + sum(len(re.split(r"&&|\|\|?|;", x)) for x in commands)
            continue
        if ">>> " in code:  # a result that is shown is no part of the task
            code = "".join(x.source for x in doctest.DocTestParser().get_examples(code) if not x.want)
        more = count_python(code)
        lines, calls = lines + more[0], calls + more[1]
    return lines, calls


def count_tool(name: str) -> dict[str, tuple[int, int]]:
    """Lines and calls of the tasks with a tool, from its source: nothing is imported."""
    functions: dict[str, ast.FunctionDef] = {}
    sources: dict[str, str] = {}
    helpers: dict[str, list[str]] = {}
    for module in ("arrays", name):
        text = (HERE / f"{module}.py").read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                functions[node.name], sources[node.name] = (
                    node,
                    "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]),
                )
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELPERS":
                helpers = {
                    ast.literal_eval(k): [ast.unparse(x) for x in v.elts]
                    for k, v in zip(node.value.keys, node.value.values, strict=True)
                }
    counted = {}
    for task in TASKS:
        own = count_python(sources[task])
        lines, calls = own[0] - 1, own[1]
        for helper in helpers.get(task, []):
            more = count_python(sources[helper])
            lines, calls = lines + more[0], calls + more[1]
        counted[task] = lines, calls
    return counted


def table() -> str:
    """The table of the page."""
    ours = [count_section(text) for _, text in sections()]
    theirs = {name: count_tool(name) for name in TOOLS}
    rows = [f"| | task | here | {' | '.join(TOOLS.values())} |", "|---|---|---|" + "---|" * len(TOOLS)]
    fewest = alone = 0
    for number, (task, (title, _), own) in enumerate(zip(TASKS, sections(), ours, strict=True), start=1):
        others = [theirs[name][task] for name in TOOLS]
        fewest += own[0] <= min(x[0] for x in others)
        alone += own[0] < min(x[0] for x in others)
        rows.append(
            f"| {number} | {title} | " + " | ".join(f"{lines} ({calls})" for lines, calls in (own, *others)) + " |"
        )
    sums = [
        tuple(map(sum, zip(*counts, strict=True))) for counts in (ours, *(x.values() for x in theirs.values()))
    ]
    rows.append("| | together | " + " | ".join(f"{lines} ({calls})" for lines, calls in sums) + " |")
    return (
        "\n".join(rows)
        + f"\n\nFewest lines here: {fewest} of {len(TASKS)} tasks, in {alone} of them fewer than with any other.\n"
    )


def written(page: str) -> str:
    """The page with the table of today."""
    return _TABLE.sub(lambda _: table(), page)
