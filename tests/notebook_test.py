"""The notebooks run from the first cell to the last, and show what they say."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

# Name -> what its outputs say, and how many figures it shows.
NOTEBOOKS = {
    "forget_what_was_memorized": ("20 of the first 20 are wrong", 2),
    "correct_wrong_labels": ("after 0 wrong", 1),
    "where_is_the_memory": ("After a rewind to epoch 0", 4),
    "what_a_language_model_says": ("drop", 0),
    "what_an_attacker_knows": ("Members that the strongest attack finds", 1),
}
# They train a decoder twice, and eight networks; and `correct_labels.py`, which
# tells the same story, is run by `examples_test`.
_SLOW = (
    "what_a_language_model_says",
    "what_an_attacker_knows",
    "correct_wrong_labels",
)


def _read(name):
    return nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)


def _check(notebook, words, figures):
    outputs = [
        output for cell in notebook.cells for output in cell.get("outputs", ())
    ]
    text = "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for output in outputs
    )
    assert words in text
    assert "WARNING" not in text
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == figures
    return text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ())
        for name in NOTEBOOKS
    ],
)
def test_the_notebook_runs(name):
    notebook = _read(name)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    text = _check(notebook, *NOTEBOOKS[name])
    if name == "where_is_the_memory":
        assert text.rstrip().endswith("True")  # The pruned one is the same.


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_outputs_are_kept(name):
    notebook = _read(name)
    nbformat.validate(notebook)
    _check(notebook, *NOTEBOOKS[name])
    text = (ROOT / "examples" / f"{name}.ipynb").read_text(encoding="utf-8")
    # Neither a machine's paths nor what it writes to its standard error.
    assert "/tmp" not in text and "stderr" not in text
