"""Runs the blocks of a Markdown page, one after the other, in one namespace and the current folder.

Python blocks are executed (those that begin with ``>>>`` are compared with their output), bash blocks must end
with 0. A block below ``<!-- skip: next "why" -->`` is not run; it must say why.
"""

import doctest
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
QUICK_START = ROOT / "docs/quickstart.md"
WALKTHROUGH = ROOT / "docs/walkthrough.md"
PAGES = [ROOT / "README.md", ROOT / "docs/scale.md", *sorted((ROOT / "docs/guides").glob("[!i]*.md"))]


def run_bash(example):
    command = ["bash", "-euo", "pipefail", "-c", str(example.parsed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode:
        raise AssertionError(
            f"{example.path}, line {example.line}: ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )


SYBIL = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS),
        CodeBlockParser("bash", run_bash),
        SkipParser(),
    ]
)


def languages():
    """Names for `skip: next if(...)`: which languages but Python are installed here."""
    rhdf5 = shutil.which("Rscript") and not subprocess.call(
        ["Rscript", "-e", "library(rhdf5)"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return {"octave": bool(shutil.which("octave")), "rhdf5": bool(rhdf5)}


def run_page(page):
    """Run a page; the reasons of what was not run."""
    document = SYBIL.parse(page)
    document.namespace["__name__"] = "__main__"
    if "skip: next if(" in page.read_text(encoding="utf-8"):
        document.namespace.update(languages())
    skipped = []
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as reason:
            skipped.append(str(reason))
    return skipped


@contextmanager
def working_in(folder, command=f'"{sys.executable}" -W error -m fs_extract'):
    """`folder` as the current one, a program `fs-extract` on the path, and no setting from outside."""
    programs = folder.with_name(f"{folder.name}-bin")
    programs.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    program = programs / "fs-extract"
    program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
            patch.delenv(name)
        patch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(folder)
        yield folder
