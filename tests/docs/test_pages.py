"""The examples of README.md, the quick start and the guides run as they stand there."""

import re
import shutil
import subprocess

import pytest
from pages import PAGES, QUICK_START, ROOT, WALKTHROUGH, run_page, working_in


@pytest.mark.slow
def test_the_quick_start_runs(after_the_quick_start):
    assert (after_the_quick_start / "features.zarr" / "zarr.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page, tmp_path, after_the_quick_start, preloaded):
    with working_in(tmp_path / "work", preloaded.command) as folder:
        shutil.copytree(after_the_quick_start, folder, dirs_exist_ok=True)
        run_page(page)


COMMANDS = [
    "fs-extract ls nothing.zarr; echo $?",
    "export FEATURESTORE_JSON=1; cd music && fs-extract ls ../features.zarr | sort -r > ../ids; tail -1 ../ids",
    "fs-extract build music s.zarr --model nothing/at/all/here",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_preloaded_is_like_one_that_is_not(command, preloaded, after_the_quick_start, tmp_path):
    seen = []
    for number, options in enumerate(((), (preloaded.command,))):
        with working_in(tmp_path / str(number) / "work", *options) as folder:
            for name in ("music", "features.zarr"):
                (folder / name).symlink_to(after_the_quick_start / name)
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
            seen.append((done.returncode, done.stdout, done.stderr.replace(str(folder), "FOLDER")))
    assert seen[0] == seen[1]
    assert any(seen[0])


@pytest.mark.parametrize("page", [QUICK_START, WALKTHROUGH, *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_one_that_is_run_or_says_why_not(page):
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    # What is included is a file of an example, which has tests of its own.
    assert {x for x in fences[::2] if not x.startswith("{literalinclude} ../examples/")} <= {"python", "bash"}
    assert set(fences[1::2]) <= {""}
