"""Runs the twenty tasks of docs/walkthrough.md with other tools, and counts the lines of all.

    python -m benchmarks.walkthrough                      # writes the table into the page
    python -m benchmarks.walkthrough --run with_lhotse    # runs its tasks: pip install lhotse datasets matplotlib

A line is one of code as ruff formats it: comments, blank lines, docstrings and imports are not counted, nor what
sets the scene or shows a result, nor the `def` of a task. A call is a call of Python or a command of the shell. A
function that several tasks need counts with the first of them.
"""

from __future__ import annotations

import argparse

from benchmarks.walkthrough.counting import PAGE, TOOLS, table, written
from benchmarks.walkthrough.running import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", choices=list(TOOLS))
    name = parser.parse_args().run
    if name:
        run(name)
    else:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        print(table())


if __name__ == "__main__":
    main()
