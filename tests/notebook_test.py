"""The notebook runs from the first cell to the last."""

import pathlib

import nbformat
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "where_is_the_memory.ipynb"


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    outputs = [
        output for cell in notebook.cells for output in cell.get("outputs", ())
    ]
    text = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for output in outputs
    )
    assert "training labels are suspected" in text
    assert "After a rewind to epoch 0" in text
    assert text.rstrip().endswith("True")  # The pruned network is the same.
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert "/tmp" not in pathlib.Path(NOTEBOOK).read_text()
