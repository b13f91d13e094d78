"""Scores against slow twins, and the suspects that come of them."""

import csv
import dataclasses
import shutil

import keras
import numpy as np
import pytest
from scipy import stats

from tests import oracles
from tfmemloc import data, evaluation, graph, models, storage
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.per_example import per_example_gradients
from tfmemloc.labels import find_label_errors
from tfmemloc.losses import log_softmax
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.runs import Run
from tfmemloc.scores import example_scores, ranking
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.left_out import predict_left_out
from tfmemloc.scores.of_predictions import scores_of_logits
from tfmemloc.scores.of_runs import ScoreConfig, _rate, score_examples
from tfmemloc.scores.of_training import dynamics
from tfmemloc.scores.quality import (
    calibration_error,
    evaluate_scores,
    suggestions_right,
)
from tfmemloc.training.loop import train
from tfmemloc.training.record_examples import RecordExamples
from tfmemloc.training.record_run import RecordRun
from tfmemloc.training.recording import Recording
from tfmemloc.units import SearchConfig

ALL = ScoreConfig(gradient_scores=True)


@pytest.fixture(scope="module")
def scored(tied_run, digits):
    return score_examples(tied_run, digits, ALL, progress=False)


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


def test_the_first_rows_are_saved_and_all_arrays(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(example_scores, "_SAVED", 3)
    scored.save(tmp_path / "scores")
    saved = storage.read_json(tmp_path / "scores.json")["rows"]
    assert saved == scored.rows(3)
    loaded = ExampleScores.load(tmp_path / "scores")
    assert loaded.rows() == scored.rows() == list(scored.ranked())


def _dropped_by_epoch(run, model, examples):
    for epoch in run.epochs[1:]:
        run.load_weights(model, epoch)
        dropped = graph.with_inference(model, "drop")
        yield evaluation.predict_logits(dropped, examples)


def test_scores_are_their_slow_twins(tied_run, scored, digits):
    model, train_part = tied_run.model(), digits.train
    # Saved: 3, 6, 9, 12, 15; the second half of the training judges.
    by_epoch = list(_dropped_by_epoch(tied_run, model, train_part))[-3:]
    dropped = by_epoch[-1]
    tied = evaluation.predict_logits(
        graph.with_inference(model, "tied"), train_part
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
            "csl": sum(recording.loss[:, n]),
            "wrong_event": right.count(False),
        }
        for name, value in expected.items():
            assert scored.of(name)[n] == pytest.approx(value, abs=1e-4), name


def test_suspicion_and_ranking_are_their_slow_twins(tied_run, digits):
    """Of predictions alone; with what others say: `left_out_test`."""
    model, part = tied_run.model(), digits.train
    # Divide each judge's mean share of each class out, and that of their mean.
    judges, others = [], []
    given = [
        np.stack(list(_dropped_by_epoch(tied_run, model, each))[-3:])
        for each in (part, digits.test)
    ]
    scored = scores_of_logits(
        part, dropped=given[0], held_out=(given[1], digits.test.label)
    )
    for off, held_out in zip(*given, strict=True):
        off, held_out = _softmax(off), _softmax(held_out)
        judges.append(_shared_out(off, off))
        others.append(_shared_out(held_out, off))
    balanced = _shared_out(np.mean(judges, axis=0), np.mean(judges, axis=0))
    np.testing.assert_array_equal(scored.suggested, balanced.argmax(axis=1))
    held_out = np.log(
        _shared_out(np.mean(others, axis=0), np.mean(judges, axis=0))
    )
    losses = {
        t: oracles.cross_entropy(held_out / t, digits.test.label).mean()
        for t in np.exp(np.linspace(np.log(0.1), np.log(10), 201))
    }
    temperature = min(losses, key=losses.get)
    rows = np.arange(len(part)), part.label
    # The network leans to labels that it was trained on.
    leads, others = (
        [
            np.log(p[y]) - np.log(np.delete(p, y).max())
            for p, y in zip(*pair, strict=True)
        ]
        for pair in (
            (balanced, part.label),
            (np.exp(held_out), digits.test.label),
        )
    )
    lean, suspicion = 0.0, None
    for _ in range(4):
        if suspicion is not None:
            wrong = suspicion.mean()
            lean = np.mean(
                [
                    np.quantile(leads, wrong + (1 - wrong) * q)
                    - np.quantile(others, q)
                    for q in (0.25, 0.5, 0.75)
                ]
            )
        leaning = balanced.copy()
        leaning[rows] *= np.exp(-lean)
        cooled = leaning ** (1 / temperature)
        cooled /= cooled.sum(axis=1, keepdims=True)
        suspicion = 1 - _true_classes_slowly(cooled, part.label)[rows]
    assert lean > 0
    np.testing.assert_allclose(scored.suspicion, suspicion, atol=1e-3)
    others = balanced.copy()
    others[rows] = 0
    margin = np.log(others.max(axis=1)) - np.log(balanced[rows])
    ranks = stats.rankdata(margin) + stats.rankdata(-balanced[rows])
    np.testing.assert_allclose(
        scored.of("combined"), ranks / 2 / len(part), atol=2e-3
    )


def _true_classes_slowly(chance, label):
    """Bayes' rule, example by example, until the rates of labels stay."""
    classes = chance.shape[1]
    rates = np.full((classes, classes), 0.1 / (classes - 1))
    np.fill_diagonal(rates, 0.9)
    for _ in range(200):
        true = [chance[n] * rates[:, y] for n, y in enumerate(label)]
        true = np.array([row / row.sum() for row in true])
        for k in range(classes):
            counts = [
                true[label == y, k].sum() + 1 / classes for y in range(classes)
            ]
            rates[k] = np.array(counts) / sum(counts)
    return true


def _shared_out(chance, of):
    """Probabilities after each class's mean share in `of` is divided out."""
    chance = chance / of.mean(axis=0)
    return chance / chance.sum(axis=1, keepdims=True)


def _softmax(logits):
    shifted = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def test_examples_that_some_epochs_did_not_see():
    margin = np.array([[1.0, -1, np.nan], [np.nan, 2, -1], [-1, np.nan, 3]])
    found = dynamics(margin, np.abs(margin), np.abs(margin))
    np.testing.assert_allclose(found["aum"], [0, -0.5, -1])
    np.testing.assert_allclose(found["forgetting"], [1, 0, 0])
    np.testing.assert_allclose(found["first_learned"], [0, 1, 2])
    np.testing.assert_allclose(found["el2n"], [1, 1, 1])
    np.testing.assert_allclose(found["csl"], [3, 5, 5])
    np.testing.assert_allclose(found["wrong_event"], [1, 1, 2])


def test_gradient_scores_are_their_slow_twins(tied_run, scored, digits):
    few = digits.train.take(np.arange(0, 1400, 350))
    model = tied_run.model()
    tied = graph.with_inference(model, "tied")
    rates = {line["epoch"]: line["learning_rate"] for line in tied_run.history}
    norms, influence = [], np.zeros(len(few))
    engine = GradientEngine(tied, engine="vectorized_map")
    for epoch in tied_run.epochs[1:]:
        tied_run.load_weights(model, epoch)
        squared = sum(
            (g.reshape(len(few), -1) ** 2).sum(axis=1)
            for g in per_example_gradients(engine, few)
        )
        norms.append(np.sqrt(squared))
        influence += rates[epoch] * squared
    places = np.searchsorted(scored.example_id, few.example_id)
    # Epoch 3 is the nearest saved one to a tenth of the training.
    np.testing.assert_allclose(scored.of("grand")[places], norms[0], rtol=1e-3)
    np.testing.assert_allclose(
        scored.of("tracin")[places], influence, rtol=1e-3
    )


def test_a_softmax_at_the_end_changes_no_score(tmp_path, small_digits):
    """The same network, once with logits and once with probabilities."""
    plain = models.build(ModelConfig("lenet", p_gen=0.5), (8, 8, 1), 10)
    ends = {
        "logits": plain,
        "chance": keras.Model(
            plain.inputs, keras.layers.Softmax()(plain.outputs[0])
        ),
    }
    found = {}
    for name, model in ends.items():
        run = Run.create(tmp_path / name, model, examples=small_digits)
        run.record_epoch(model, 1)
        found[name] = score_examples(run, small_digits, ALL, progress=False)
    assert "tracin" in found["logits"].names
    for name in found["logits"].names[1:]:  # Rounding turns ranks round.
        np.testing.assert_allclose(
            found["chance"].of(name),
            found["logits"].of(name),
            rtol=1e-3,
            atol=1e-4,
            err_msg=name,
        )
    units = [
        find_critical_units(
            run,
            small_digits,
            SearchConfig(
                ids=tuple(small_digits.train.example_id[:4].tolist()),
                inference="tied",
            ),
            progress=False,
        )
        for run in (Run.open(tmp_path / name) for name in ends)
    ]
    np.testing.assert_array_equal(units[0].size, units[1].size)


def test_a_recording_beside_anybodys_run_is_used(tmp_path, small_digits):
    """`RecordRun` notes an epoch 0 that no recording has."""
    part = small_digits.train
    model = models.build(ModelConfig("lenet", p_gen=0.5), (8, 8, 1), 10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.125), loss)
    inputs = {
        "image": data.scale_pixels(part.inputs["image"]),
        "example_id": part.example_id,
    }
    model.fit(
        inputs,
        part.label,
        epochs=3,
        verbose=0,
        callbacks=[
            RecordRun(tmp_path, small_digits),
            RecordExamples(tmp_path / "recording", small_digits),
        ],
    )
    run = Run.open(tmp_path)
    found = score_examples(run, small_digits, progress=False)
    recorded = {"aum", "forgetting", "first_learned", "el2n", "csl"}
    assert recorded <= set(found.names)
    epoch = storage.epoch_path(tmp_path / "recording", 3)
    epoch.rename(tmp_path / "elsewhere.npz")
    with pytest.raises(ValueError, match="holds the epochs 1, 2, the run"):
        score_examples(run, small_digits, progress=False)


def test_several_runs_judge_together(tmp_path, small_digits):
    part, test = small_digits.train, small_digits.test
    runs = [
        train(
            tmp_path / str(seed),
            data=DataConfig(),
            examples=small_digits,
            model=ModelConfig("lenet", p_gen=0.5, seed=seed),
            training=TrainConfig(
                epochs=4, batch_size=40, save_every=2, seed=seed
            ),
            progress=False,
        )
        for seed in (0, 1)
    ]
    options = {
        "config": ScoreConfig(),
        "progress": False,
    }
    found = score_examples(runs, small_digits, **options)
    alone = [score_examples(run, small_digits, **options) for run in runs]
    assert found.names == alone[0].names == alone[1].names
    for name in found.names[1:]:
        mean = np.mean([scores.of(name) for scores in alone], axis=0)
        np.testing.assert_allclose(found.of(name), mean, err_msg=name)
    # Only the last of the saved epochs 2 and 4 is in the second half.
    networks = [run.model(inference="drop") for run in runs]
    logits = [
        np.stack([evaluation.predict_logits(m, split) for m in networks])
        for split in (part, test)
    ]
    judges, others = (log_softmax(each) for each in logits)
    expected = ranking.ranked(
        part,
        judges,
        (others, test.label),
        "auto",
        {},
        None,
        left_out=predict_left_out(part, test),
    )
    np.testing.assert_allclose(found.suspicion, expected.suspicion, atol=1e-6)
    np.testing.assert_array_equal(found.suggested, expected.suggested)
    np.testing.assert_allclose(found.of("combined"), expected.of("combined"))

    shutil.rmtree(runs[1].directory / "recording")
    with pytest.raises(ValueError, match=r"1 only one has the scores \['aum'"):
        score_examples(runs, small_digits, **options)
    with pytest.raises(ValueError, match="Received: none"):
        score_examples([], small_digits)
    other = dataclasses.replace(small_digits, label=small_digits.true_label)
    with pytest.raises(ValueError, match=f"^{runs[0].directory}: .* not the"):
        score_examples(runs, other)


def test_rates_are_those_of_the_steps_that_were_taken(tmp_path, small_digits):
    run = train(
        tmp_path / "run",
        data=DataConfig(),
        examples=small_digits,
        model=ModelConfig("lenet"),
        training=TrainConfig(
            epochs=5, batch_size=64, schedule="triangle", save_every=5
        ),
        progress=False,
    )
    # Two steps in an epoch: the middles of steps 2, 4, ... of ten.
    expected = [0.15, 0.35, (1 - 0.55) * 0.4 / 0.6, (1 - 0.75) * 0.4 / 0.6]
    expected = [0.01 / 0.4 * rate for rate in [*expected, 0.05 * 0.4 / 0.6]]
    rates = [line["learning_rate"] for line in run.history]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    # The last epoch alone was saved, which is not an early one.
    assert run.epochs == (0, 5)
    found = score_examples(run, small_digits, ALL, progress=False)
    assert "grand" not in found.names
    assert (found.of("tracin") > 0).all()
    assert _rate({"logs": {"learning_rate": 0.3}}) == 0.3
    assert _rate({}) == 1.0


def test_files_and_page(scored, digits, tmp_path):
    names = tuple(f"<i>class {c}" for c in range(10))
    named = dataclasses.replace(
        digits, name="<script>digits", class_names=names
    )
    again = find_label_errors(scored, named, tmp_path)
    assert again is scored
    evaluation = storage.read_json(tmp_path / "suspects.json")
    assert evaluation["scores"] == evaluate_scores(scored)
    assert evaluation["suspects"] == len(scored.suspects())
    loaded = ExampleScores.load(tmp_path / "example_scores")
    assert loaded.rows() == scored.rows()
    with open(tmp_path / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(digits.train)
    assert int(rows[0]["example_id"]) == scored.rows(1)[0]["example_id"]
    assert sum(row["suspect"] == "1" for row in rows) == len(scored.suspects())
    page = (tmp_path / "suspects.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;digits" in page
    shown = min(100, len(scored.suspects()))
    assert page.count("data:image/png") == shown
    first = scored.suspects()[0]
    caption = f"labelled &lt;i&gt;class {first['label']}, suggested &lt;i&gt;"
    assert caption in page and "<i>" not in page
    assert f"id {first['example_id']}, suspicion" in page
    assert f"<dt>tied_gap</dt><dd>{first['tied_gap']:.3g}</dd>" in page
    with pytest.raises(ValueError, match="expected 10 class names, or none"):
        dataclasses.replace(digits, class_names=("one",))


def test_scores_of_other_labels_are_refused(scored, digits, tmp_path):
    other = dataclasses.replace(digits, label=digits.true_label)
    with pytest.raises(ValueError, match="of other labels than those"):
        find_label_errors(scored, other, tmp_path)
    turned = dataclasses.replace(
        digits, inputs={"image": digits.inputs["image"][:, ::-1]}
    )
    with pytest.raises(ValueError, match="of other inputs than those"):
        find_label_errors(scored, turned, tmp_path)
    with pytest.raises(TypeError, match="Received: ExampleScores, options"):
        find_label_errors(scored, digits, tmp_path, prior=np.ones(10))
    with pytest.raises(TypeError, match="Received: str, options"):
        find_label_errors("runs/demo", digits, tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_that_cannot_be_scored(tmp_path, digits, tied_run):
    run = train(
        tmp_path / "plain",
        data=DataConfig(),
        examples=digits,
        model=ModelConfig("lenet", dropout="none"),
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
