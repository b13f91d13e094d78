"""Scores against slow twins, and the suspects that come of them."""

import csv
import dataclasses

import numpy as np
import pytest

from tests import oracles
from tfmemloc import evaluation, surgery
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.gradients import GradientEngine, per_example_gradients
from tfmemloc.label_errors import find_label_errors, suspects_sentence
from tfmemloc.results import ExampleScores
from tfmemloc.scores import (
    evaluate_scores,
    score_examples,
    scores_of_logits,
    suggestions_right,
)
from tfmemloc.training import train


@pytest.fixture(scope="module")
def tied_run(tmp_path_factory):
    return train(
        tmp_path_factory.mktemp("scores") / "run",
        data=DataConfig(),
        model=ModelConfig(width=0.25, p_gen=0.25),
        training=TrainConfig(
            epochs=15, batch_size=128, learning_rate=0.1, save_every=3
        ),
        progress=False,
    )


@pytest.fixture(scope="module")
def scored(tied_run, digits):
    return score_examples(tied_run, digits, progress=False)


def test_wrong_labels_are_found_on_digits(scored):
    rows = {row["score"]: row for row in evaluate_scores(scored)}
    for name in ("combined", "tied_gap", "dropped_margin"):
        assert rows[name]["auroc"] > 0.98
        assert rows[name]["auroc_low"] <= rows[name]["auroc"]
    assert rows["combined"]["average_precision"] > 0.9
    right, low, high = suggestions_right(scored)
    assert low <= right <= high and right > 0.8
    suspects = scored.suspects()
    hits = [row["label"] != row["true_label"] for row in suspects]
    assert sum(hits) > 100
    assert suspects[0]["suspicion"] > 0.99
    combined = [row["combined"] for row in scored.rows()]
    assert combined == sorted(combined, reverse=True)


def _logits_by_epoch(run, model, examples):
    result = []
    for epoch in run.epochs[1:]:
        run.load_weights(model, epoch)
        tied = surgery.with_inference(model, "tied")
        result.append(evaluation.predict_logits(tied, examples))
    return result


def test_scores_are_their_slow_twins(tied_run, scored, digits):
    model, train_part = tied_run.model(), digits.train
    by_epoch = _logits_by_epoch(tied_run, model, train_part)
    dropped = evaluation.predict_logits(
        surgery.with_inference(model, "drop"), train_part
    )
    for n in range(0, len(train_part), 97):
        y = train_part.label[n]
        margins = [
            logits[n, y] - max(np.delete(logits[n], y)) for logits in by_epoch
        ]
        right = [margin > 0 for margin in margins]
        last = [by_epoch[-1][[n]], dropped[[n]]]
        on, off = (oracles.cross_entropy(x, [y])[0] for x in last)
        first = by_epoch[0][n].astype(float)
        error = np.exp(first) / np.exp(first).sum()
        error[y] -= 1
        expected = {
            "tied_gap": off - on,
            "loss": on,
            "dropped_margin": max(np.delete(dropped[n], y)) - dropped[n, y],
            "aum": -np.mean(margins),
            "forgetting": sum(
                a and not b for a, b in zip(right, right[1:], strict=False)
            )
            if any(right)
            else len(right),
            "first_learned": right.index(True) if any(right) else len(right),
            "el2n": np.sqrt((error**2).sum()),
        }
        for name, value in expected.items():
            assert scored.of(name)[n] == pytest.approx(value, abs=1e-4), name
        assert scored.suspicion[n] == pytest.approx(1 - np.exp(-off), abs=1e-5)
        assert scored.suggested[n] == dropped[n].argmax()


def test_gradient_scores_are_their_slow_twins(tied_run, scored, digits):
    few = digits.train.take(np.arange(0, 1400, 350))
    model = tied_run.model()
    tied = surgery.with_inference(model, "tied")
    rates = {line["epoch"]: line["learning_rate"] for line in tied_run.history}
    norms, influence = [], np.zeros(len(few))
    for epoch in tied_run.epochs[1:]:
        tied_run.load_weights(model, epoch)
        engine = GradientEngine(tied, engine="vectorized_map")
        squared = sum(
            (g.reshape(len(few), -1) ** 2).sum(axis=1)
            for g in per_example_gradients(engine, few)
        )
        norms.append(np.sqrt(squared))
        influence += rates[epoch] * squared
    places = np.searchsorted(scored.example_id, few.example_id)
    np.testing.assert_allclose(scored.of("grand")[places], norms[0], rtol=1e-3)
    np.testing.assert_allclose(
        scored.of("tracin")[places], influence, rtol=1e-3
    )


def test_scores_of_the_callers_own_predictions(rng):
    from tfmemloc.data import from_arrays

    label = np.arange(40) % 4
    examples = from_arrays(
        rng.normal(size=(41, 8, 8, 1)).astype(np.float32)[:40] / 9,
        label,
        np.zeros((1, 8, 8, 1), np.float32),
        np.zeros(1, int),
    ).train
    dropped = 5 * np.eye(4)[label]
    dropped[7] = 5 * np.eye(4)[(label[7] + 1) % 4]
    scores = scores_of_logits(examples, dropped=dropped)
    assert scores.names == ("combined", "dropped_margin")
    (suspect,) = scores.suspects()
    assert suspect["example_id"] == examples.example_id[7]
    assert suspect["suggested"] == (label[7] + 1) % 4
    assert evaluate_scores(scores) == []  # No label is known to be wrong.
    assert "known to be" not in suspects_sentence(scores)


def test_files_and_page(scored, digits, tmp_path):
    named = dataclasses.replace(digits, name="<script>digits")
    again = find_label_errors(scored, named, tmp_path)
    assert again is scored
    loaded = ExampleScores.load(tmp_path / "example_scores")
    assert loaded.rows() == scored.rows()
    with open(tmp_path / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(digits.train)
    assert int(rows[0]["example_id"]) == scored.rows()[0]["example_id"]
    page = (tmp_path / "suspects.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;digits" in page
    shown = min(100, len(scored.suspects()))
    assert page.count("data:image/png") == shown
    first = scored.suspects()[0]
    assert f"id {first['example_id']}: labelled {first['label']}" in page


def test_scores_of_other_labels_are_refused(scored, digits, tmp_path):
    other = dataclasses.replace(digits, label=digits.true_label)
    with pytest.raises(ValueError, match="of other labels than those"):
        find_label_errors(scored, other, tmp_path)


def test_runs_that_cannot_be_scored(tmp_path, digits, tied_run):
    run = train(
        tmp_path / "plain",
        data=DataConfig(),
        model=ModelConfig(width=0.125, dropout="none"),
        training=TrainConfig(epochs=1),
        progress=False,
    )
    with pytest.raises(ValueError, match="network without tied layers"):
        score_examples(run, digits)
    other = dataclasses.replace(digits, label=digits.true_label)
    with pytest.raises(ValueError, match="label"):
        score_examples(tied_run, other)
    for path in sorted((tied_run.directory / "weights").iterdir())[2:]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        path.unlink()
    try:
        with pytest.raises(ValueError, match="at least two after the init"):
            score_examples(tied_run, digits)
    finally:
        for path in tmp_path.glob("epoch_*.npz"):
            path.rename(tied_run.directory / "weights" / path.name)


def test_bad_predictions_are_refused(digits):
    part = digits.train
    good = np.zeros((len(part), 10))
    with pytest.raises(ValueError, match="`dropped` expected logits of shape"):
        scores_of_logits(part, dropped=good[:, :9])
    missing = np.stack([good, good])
    missing[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"`by_epoch` has logits that are not"):
        scores_of_logits(part, dropped=good, by_epoch=missing)
    one_class = part.take(part.label == 3)
    with pytest.raises(ValueError, match="Expected at least two classes"):
        scores_of_logits(one_class, dropped=good[: len(one_class)])
