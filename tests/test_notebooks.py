"""Every notebook runs from top to bottom, without warnings."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
MAX_BYTES = 500_000


def test_there_are_notebooks():
    assert "getting_started.ipynb" in NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_without_warnings(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)
    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    messages = [o.text for o in outputs if o.get("name") == "stderr"]
    assert outputs
    # numpyro's progress bar asks for ipywidgets, which are not needed.
    ours = [text for text in messages if "IProgress not found" not in text]
    assert not [text for text in ours if "Warning" in text]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_stored_small_and_in_order(name):
    assert (FOLDER / name).stat().st_size < MAX_BYTES
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    kinds = [o.output_type for cell in cells for o in cell.outputs]
    assert "error" not in kinds
