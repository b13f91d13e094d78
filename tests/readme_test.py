"""What the README says is run, or compared with what was measured."""

import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT
from tfmemloc import report
from tfmemloc.results import (
    CriticalUnits,
    GradientAccounting,
    LayerRetraining,
    LayerRewinding,
)

README = (ROOT / "README.md").read_text()
PAPER_MAP = (ROOT / "docs" / "paper_map.md").read_text()
RESULTS = ROOT / "docs" / "results"


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tying, by_hand = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(tying, names)
    x, key = names["x_train"], names["name"]
    ids = np.zeros(64, int)
    dropped = names["model"].predict({key: x, "example_id": ids}, verbose=0)
    tied = names["tied"].predict({key: x, "example_id": ids}, verbose=0)
    assert np.abs(dropped - tied).max() > 0
    pruned = names["dropped"].predict(x, verbose=0)
    np.testing.assert_allclose(pruned, dropped, atol=1e-4)
    assert names["plain"].count_params() == names["model"].count_params()
    assert (tmp_path / "served" / "saved_model.pb").exists()
    names = {}
    exec(by_hand, names)
    assert np.isfinite(float(names["loss"]))


def test_the_table_is_the_one_that_the_demo_printed():
    summary = json.loads((RESULTS / "digits_seed0.json").read_text())
    table = report.text_table(summary["rows"])
    assert table in README and table in PAPER_MAP


@pytest.mark.parametrize("name", ["mnist_6000", "cifar10_5000"])
def test_the_other_tables_are_the_measured_ones(name):
    summary = json.loads((RESULTS / f"{name}.json").read_text())
    assert report.text_table(summary["rows"]) in PAPER_MAP


@pytest.mark.parametrize("name", ["mnist_10000", "cifar10_5000"])
def test_the_critical_units_are_the_measured_ones(name):
    path = RESULTS / f"{name}_critical_units.json"
    found = json.loads(path.read_text())
    for command in found["commands"]:
        assert command in PAPER_MAP
    for row in found["table"]:
        cells = [row["subset"], row["examples"], row["flipped"]]
        interval = f"[{row['median_low']:g}, {row['median_high']:g}]"
        line = r"\s+".join(map(str, cells)) + rf"\s+{row['median']:g} "
        assert re.search(line + re.escape(interval), PAPER_MAP)


def test_the_designated_units_are_the_measured_ones():
    own = CriticalUnits.load(RESULTS / "digits_seed0_own_units_example_tied")
    section = report.own_units_section({"example_tied": own})
    assert report.text_table(section.rows, percent=False) in PAPER_MAP


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
        "critical_units": (CriticalUnits, report.critical_sentence),
    }
    flat = " ".join(PAPER_MAP.split())
    for name, (kind, sentence) in sentences.items():
        result = kind.load(RESULTS / f"digits_seed0_{name}")
        assert sentence(result) in flat


def test_the_table_of_label_errors_is_the_measured_one():
    found = json.loads((RESULTS / "digits_label_errors.json").read_text())
    assert report.text_table(found["table"]) in PAPER_MAP
    best = {
        row["noise"]: row["auroc"]
        for row in found["table"]
        if row["score"] == "tied_gap"
    }
    assert best["uniform"] >= 0.995 and best["confusable"] >= 0.98
