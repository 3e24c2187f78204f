"""The progress bar of `build` in Python: on a terminal, in a notebook, and nowhere else."""

import contextlib
import os
import subprocess
import termios

import nbclient
import nbformat
import pytest

from featurestore import build
from featurestore.errors import SettingError

SCRIPT = """
import sys
from featurestore import build

build(sys.argv[1], sys.argv[2], model="logmel", layers=[0])
print(sorted(name for name in sys.modules if name in ("tqdm.notebook", "IPython")))
"""


@pytest.mark.slow
def test_a_script_shows_it_on_a_terminal_only(music, tmp_path, preloaded):
    command = ["-c", SCRIPT, music]
    with preloaded.start(
        [*command, tmp_path / "one.zarr"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as silent:
        assert silent.communicate() == ("[]\n", "")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    with preloaded.start([*command, tmp_path / "two.zarr"], stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while more := os.read(ours, 4096):
                seen += more
        assert process.stdout.read() == "[]\n"
    os.close(ours)
    assert b"extracting: " in seen
    assert b" tracks" in seen


@pytest.mark.slow
def test_a_notebook_shows_it(music, tmp_path):
    lines = ["from featurestore import build", f"build({str(music)!r}, 's.zarr', model='logmel', layers=[0])"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(lines))])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (cell,) = notebook.cells
    assert "extracting: " in "".join(output.get("text", "") for output in cell.outputs)


def test_a_word_that_means_nothing_is_refused(music, tmp_path):
    with pytest.raises(SettingError, match=r"`progress` must be a function, auto or None, not 'bar'"):
        build(music, tmp_path / "s.zarr", model="logmel", progress="bar")
