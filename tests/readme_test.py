"""What the README says is run, or compared with what was measured."""

import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT
from tfmemloc import report
from tfmemloc.results import GradientAccounting, LayerRetraining, LayerRewinding

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "docs" / "results"


# Keras says so of every fit on a tf.data.Dataset.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_the_example_runs_and_drops():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    layer = names["model"].layers[-2]
    assert type(layer).__name__ == "ExampleTiedDropout"
    feed = {
        "image": names["x_train"],
        "example_id": np.arange(64),
    }
    dropped = names["dropped"].predict(feed, verbose=0)
    tied = names["tied"].predict(feed, verbose=0)
    assert np.abs(dropped - tied).max() > 0


def test_the_table_is_the_one_that_the_demo_printed():
    summary = json.loads((RESULTS / "digits_seed0.json").read_text())
    assert report.text_table(summary["rows"]) in README


def test_the_digits_reach_what_the_project_wants():
    for seed in (0, 1, 2):
        summary = json.loads((RESULTS / f"digits_seed{seed}.json").read_text())
        assert summary["config"]["model"]["seed"] == seed
        rows = {(r["model"], r["inference"]): r for r in summary["rows"]}
        dropped = rows["example_tied", "drop"]
        assert rows["example_tied", "tied"]["noisy"] >= 0.98
        assert dropped["noisy"] <= 0.02
        assert dropped["clean"] >= 0.95
        assert dropped["noisy_true_label"] >= 0.85
        assert dropped["test"] >= rows["standard", "plain"]["test"]


def test_the_sentences_are_those_of_the_probes():
    sentences = {
        "gradient_accounting": (
            GradientAccounting,
            report.gradient_sentence,
        ),
        "layer_rewinding": (LayerRewinding, report.rewinding_sentence),
        "layer_retraining": (LayerRetraining, report.retraining_sentence),
    }
    flat = " ".join(README.split())
    for name, (kind, sentence) in sentences.items():
        result = kind.load(RESULTS / f"digits_seed0_{name}")
        assert sentence(result) in flat
