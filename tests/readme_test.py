"""What the README says is run, or compared with what was measured."""

import json
import re

import numpy as np
import pytest

from benchmarks import tables
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PAPER_MAP = (ROOT / "docs" / "paper_map.md").read_text()
RESULTS = ROOT / "docs" / "results"


@pytest.fixture
def run_example(tmp_path, monkeypatch):
    """Runs the k-th example in a folder of its own; gives its names."""
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 5
    monkeypatch.chdir(tmp_path)

    def run(k):
        names = {}
        exec(examples[k], names)
        return names

    return run


def test_the_example_of_removal(run_example, tmp_path):
    names = run_example(0)
    x, y = names["x"], names["y"]
    wrong = np.setdiff1d(
        np.arange(0, len(x), 10), np.flatnonzero(names["test"])
    )
    before, after = (
        names[model].predict(x[wrong], verbose=0).argmax(axis=1)
        for model in ("model", "edited")
    )
    assert (before == y[wrong]).mean() > 0.7
    assert (after == y[wrong]).mean() < 0.3
    assert (after == (y[wrong] - 1) % 10).mean() > 0.7
    was, now = (row["test"] for row in names["result"].rows())
    assert now > was
    assert (tmp_path / "forgotten.keras").exists()


def test_the_example_of_wrong_labels(run_example, tmp_path):
    names = run_example(1)
    found = {row["example_id"] for row in names["scores"].suspects()}
    wrong = set(range(0, 1797, 50))
    assert len(found & wrong) > 0.8 * len(wrong)
    assert len(found) < 4 * len(wrong)
    assert (tmp_path / "suspects" / "suspects.html").exists()


def test_the_example_of_tying(run_example, tmp_path):
    names = run_example(2)
    x, key = names["x_train"], names["name"]
    ids = np.zeros(64, int)
    dropped = names["model"].predict({key: x, "example_id": ids}, verbose=0)
    tied = names["tied"].predict({key: x, "example_id": ids}, verbose=0)
    assert np.abs(dropped - tied).max() > 0
    pruned = names["dropped"].predict(x, verbose=0)
    np.testing.assert_allclose(pruned, dropped, atol=1e-4)
    assert names["plain"].count_params() == names["model"].count_params()
    assert (tmp_path / "served" / "saved_model.pb").exists()


def test_the_example_of_a_loop_by_hand(run_example):
    names = run_example(3)
    assert np.isfinite(float(names["loss"]))


def test_the_example_of_other_data(run_example):
    names = run_example(4)
    assert set(names["run"].history[-1]["accuracy"]) == {"tied", "drop"}


@pytest.mark.parametrize("path", tables.TEXTS, ids=lambda path: path.name)
def test_the_tables_are_the_measured_ones(path):
    text = path.read_text()
    assert "<!-- " in text
    assert tables.filled(text) == text
    for name in re.findall(r"<!-- (\w+) -->", text):
        assert f"<!-- /{name} -->" in text


def test_the_site_takes_sections_that_there_are():
    pages = [path.read_text() for path in (ROOT / "docs").glob("*.md")]
    wanted = re.findall(r"\{\{ README: (.+?) \}\}", "".join(pages))
    assert len(wanted) == 6
    assert set(wanted) <= set(re.findall(r"^## (.+)$", README, re.M))


def test_the_commands_are_those_that_were_measured():
    for name in ("mnist_10000", "cifar10_5000"):
        path = RESULTS / f"{name}_critical_units.json"
        for command in json.loads(path.read_text())["commands"]:
            assert command in PAPER_MAP


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


def _mean(rows, name, **wanted):
    """The mean of a column over the rows that have these values."""
    found = [row[name] for row in rows if wanted.items() <= row.items()]
    assert found, wanted
    return sum(found) / len(found)


def test_labels_are_found_as_the_project_wants():
    rows = json.loads((RESULTS / "digits_label_errors.json").read_text())
    rows = rows["rows"]
    uniform, confusable = (
        _mean(rows, "auroc", noise=noise, score="tied_gap")
        for noise in ("uniform", "confusable")
    )
    assert uniform >= 0.995 and confusable >= 0.98
    ours = ("ordinary_combined", "tied_combined", "left_out")
    for noise in ("uniform", "confusable", "one_class"):
        for name in ours:
            cell = {"noise": noise, "score": name}
            assert _mean(rows, "calibration_error", **cell) <= 0.03
            assert 0.75 <= _mean(rows, "suspicion_sum", **cell) <= 1.25
            if noise != "one_class":
                assert _mean(rows, "suggestion_right", **cell) >= 0.9
    found = json.loads((RESULTS / "cifar10_label_errors.json").read_text())
    cell = {"noise": "uniform", "score": "ordinary_combined"}
    assert _mean(found["rows"], "average_precision", **cell) >= 0.62
    assert _mean(found["rows"], "calibration_error", **cell) <= 0.06


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_the_ranking_is_ahead_of_all_rivals(name):
    rows = json.loads((RESULTS / f"{name}_label_errors.json").read_text())
    rows = rows["rows"]
    for noise in ("uniform", "confusable", "one_class"):
        names = {row["score"] for row in rows if row["noise"] == noise}
        found = {
            score: _mean(rows, "average_precision", noise=noise, score=score)
            for score in names
        }
        rivals = {s: v for s, v in found.items() if s.startswith("cleanlab")}
        if found:
            best = max(rivals.values(), default=0.0)
            assert found["ordinary_combined"] >= best


def test_the_rate_of_wrong_labels_is_found():
    rows = json.loads((RESULTS / "label_rates.json").read_text())["rows"]
    for name in ("digits", "MNIST, 5,000", "CIFAR-10, 5,000"):
        for rate in (0.01, 0.1, 0.2):
            cell = {"data": name, "rate": rate}
            found = _mean(rows, "found", **cell)
            assert found == pytest.approx(rate, rel=0.25)
            assert _mean(rows, "calibration_error", **cell) <= 0.03
