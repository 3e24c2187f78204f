"""The notebook runs without a network, and what is stored in it is what comes out."""

import nbformat
import pytest
from nbclient import NotebookClient
from pages import ROOT, working_in

NOTEBOOK = ROOT / "docs/notebook.ipynb"


def shown(notebook):
    """What the cells print and return, as text; progress goes to stderr."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    outputs = [output for output in outputs if output.get("name") != "stderr"]
    return [output.get("text") or output["data"]["text/plain"] for output in outputs]


@pytest.mark.slow
def test_the_notebook_shows_what_it_does(tmp_path):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    executed = nbformat.read(NOTEBOOK, as_version=4)
    with working_in(tmp_path / "work") as folder:
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(executed, timeout=200, kernel_name="python3", resources=resources).execute()
    assert shown(executed) == shown(stored), "run it anew: jupyter execute --inplace docs/notebook.ipynb"
    assert len(shown(stored)) == 7
