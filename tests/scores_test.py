"""Scores against slow twins, and the suspects that come of them."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tests import oracles
from tfmemloc import evaluation, surgery
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.gradients import GradientEngine, per_example_gradients
from tfmemloc.label_errors import find_label_errors, suspects_sentence
from tfmemloc.recording import Recording
from tfmemloc.results import ExampleScores
from tfmemloc.runs import Run
from tfmemloc.scores import (
    _dynamics,
    _retrieval,
    calibration_error,
    evaluate_scores,
    fit_temperature,
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
    assert 0 < calibration_error(scored) < 0.1
    suspects = scored.suspects()
    hits = [row["label"] != row["true_label"] for row in suspects]
    assert sum(hits) > 100
    assert suspects[0]["suspicion"] > 0.99
    combined = [row["combined"] for row in scored.rows()]
    assert combined == sorted(combined, reverse=True)


def _dropped_by_epoch(run, model, examples):
    for epoch in run.epochs[1:]:
        run.load_weights(model, epoch)
        dropped = surgery.with_inference(model, "drop")
        yield evaluation.predict_logits(dropped, examples)


def test_scores_are_their_slow_twins(tied_run, scored, digits):
    model, train_part = tied_run.model(), digits.train
    by_epoch = list(_dropped_by_epoch(tied_run, model, train_part))
    dropped = by_epoch[-1]
    tied = evaluation.predict_logits(
        surgery.with_inference(model, "tied"), train_part
    )
    recording = Recording.open(tied_run.directory / "recording").of(train_part)
    assert recording.epochs == tuple(range(1, 16))
    for n in range(0, len(train_part), 97):
        y = train_part.label[n]
        margins = recording.margin[:, n]
        right = [margin > 0 for margin in margins]
        on, off = (
            oracles.cross_entropy(x[[n]], [y])[0] for x in (tied, dropped)
        )
        expected = {
            "tied_gap": off - on,
            "loss": on,
            "dropped_margin": max(np.delete(dropped[n], y)) - dropped[n, y],
            "disagreement": np.mean(
                [
                    1 - np.exp(-oracles.cross_entropy(x[[n]], [y])[0])
                    for x in by_epoch
                ]
            ),
            "aum": -np.mean(margins),
            "forgetting": sum(
                a and not b for a, b in zip(right, right[1:], strict=False)
            )
            if any(right)
            else len(right),
            "first_learned": right.index(True) if any(right) else len(right),
            "el2n": recording.error[1, n],
        }
        for name, value in expected.items():
            assert scored.of(name)[n] == pytest.approx(value, abs=1e-4), name


def test_suspicion_and_ranking_are_their_slow_twins(tied_run, scored, digits):
    model, part = tied_run.model(), digits.train
    drop = surgery.with_inference(model, "drop")
    off = _softmax(evaluation.predict_logits(drop, part))
    # Divide the mean share of each class out, then cool.
    balanced = off / off.mean(axis=0)
    balanced /= balanced.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(scored.suggested, balanced.argmax(axis=1))
    held_out = _softmax(evaluation.predict_logits(drop, digits.test))
    held_out = np.log(held_out / off.mean(axis=0))
    losses = {
        t: oracles.cross_entropy(held_out / t, digits.test.label).mean()
        for t in np.exp(np.linspace(np.log(0.1), np.log(10), 201))
    }
    cooled = balanced ** (1 / min(losses, key=losses.get))
    cooled /= cooled.sum(axis=1, keepdims=True)
    rows = np.arange(len(part)), part.label
    np.testing.assert_allclose(scored.suspicion, 1 - cooled[rows], atol=1e-4)
    others = balanced.copy()
    others[rows] = 0
    margin = np.log(others.max(axis=1)) - np.log(balanced[rows])
    gap = -scored.of("loss") - np.log(balanced[rows])
    ranks = (stats.rankdata(margin) + stats.rankdata(gap)) / 2 / len(part)
    np.testing.assert_allclose(scored.of("combined"), ranks, atol=2e-3)


def _softmax(logits):
    shifted = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def test_measures_are_those_of_scikit_learn(rng):
    count = 300
    wrong = rng.random(count) < 0.2
    value = np.round(rng.normal(size=count) + wrong, 1)  # With ties.
    weights = rng.multinomial(count, np.full(count, 1 / count), 5)
    found = _retrieval(wrong, value, np.vstack([np.ones(count, int), weights]))
    for b, weight in enumerate([np.ones(count), *weights]):
        repeated = np.repeat(np.arange(count), weight.astype(int))
        assert found["auroc"][b] == pytest.approx(
            metrics.roc_auc_score(wrong[repeated], value[repeated])
        )
        assert found["average_precision"][b] == pytest.approx(
            metrics.average_precision_score(wrong[repeated], value[repeated])
        )
    top = np.argsort(-value, kind="stable")[: wrong.sum()]
    assert found["precision_at_n"][0] == wrong[top].mean()


def test_a_badly_learned_class_is_not_suspected_as_a_whole(small_digits):
    """A network that gives class 3 far less than it should."""
    part = small_digits.train
    logits = 6 * np.eye(10)[part.true_label]
    logits[:, 3] -= 5.5
    found = scores_of_logits(part, dropped=logits)
    wrong = part.label != part.true_label
    np.testing.assert_array_equal(found.suggested, part.true_label)
    np.testing.assert_array_equal(found.suspicion > 0.5, wrong)
    (row,) = [r for r in evaluate_scores(found) if r["score"] == "combined"]
    assert row["average_precision"] == 1
    with pytest.raises(ValueError, match="`prior` expected 10 shares"):
        scores_of_logits(part, dropped=logits, prior=np.ones(9))


def test_the_temperature_undoes_a_factor(rng):
    label = rng.integers(0, 4, 4000)
    logits = rng.normal(size=(4000, 4))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.array([rng.choice(4, p=p) for p in chance])
    assert fit_temperature(3 * logits, label) == pytest.approx(3, rel=0.1)


def test_examples_that_some_epochs_did_not_see():
    margin = np.array([[1.0, -1, np.nan], [np.nan, 2, -1], [-1, np.nan, 3]])
    found = _dynamics(margin, np.abs(margin))
    np.testing.assert_allclose(found["aum"], [0, -0.5, -1])
    np.testing.assert_allclose(found["forgetting"], [1, 0, 0])
    np.testing.assert_allclose(found["first_learned"], [0, 1, 2])
    np.testing.assert_allclose(found["el2n"], [1, 1, 1])


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
    names = tuple(f"<i>class {c}" for c in range(10))
    named = dataclasses.replace(
        digits, name="<script>digits", class_names=names
    )
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
    label = f"labelled &lt;i&gt;class {first['label']}"
    assert f"id {first['example_id']}: {label}" in page and "<i>" not in page
    with pytest.raises(ValueError, match="expected 10 class names, or none"):
        dataclasses.replace(digits, class_names=("one",))


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
    untrained = Run.create(
        tmp_path / "untrained", tied_run.model(), examples=digits
    )
    untrained.record_epoch(tied_run.model(), 0)
    with pytest.raises(ValueError, match="no saved epoch after the init"):
        score_examples(untrained, digits)


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
