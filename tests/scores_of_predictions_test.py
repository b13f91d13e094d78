"""Scores of predictions that somebody made, and measures of scores."""

import dataclasses
import warnings

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics

from tfmemloc import data, losses
from tfmemloc.scores import ranking
from tfmemloc.scores.calibration import fit_temperature
from tfmemloc.scores.of_predictions import scores_of_logits
from tfmemloc.scores.quality import (
    _retrieval,
    calibration_error,
    evaluate_scores,
)


def test_the_suspicion_is_the_share_of_wrong_labels(rng):
    """Overlapping classes whose predictions are the true probabilities."""
    centers = 1.5 * np.eye(4)
    true = rng.integers(0, 4, 6000)
    x = rng.normal(size=(6000, 4)) + centers[true]
    logits = x @ centers.T  # The centers are of one length.
    # A class is labelled as the next one, at rates of its own.
    rate = np.array([0.0, 0.1, 0.2, 0.3])
    is_wrong = rng.random(6000) < rate[true]
    label = np.where(is_wrong, (true + 1) % 4, true)
    examples = data.from_arrays(np.zeros((6000, 1, 1), np.uint8), label).train
    examples = dataclasses.replace(examples, true_label=true)
    found = scores_of_logits(examples, dropped=logits, prior="equal")
    assert calibration_error(found) < 0.02
    # The predictions alone are wrong more often than the labels are.
    assert found.is_suspect.mean() > 2 * is_wrong.mean()
    sure = found.suspects(at_least=0.5)
    assert len(sure) < is_wrong.sum()
    assert np.mean([row["label"] != row["true_label"] for row in sure]) > 0.5
    # By the label: 3 -> 0 is frequent, 0 -> 1 never happens.
    suspicion = [found.suspicion[label == y].mean() for y in range(4)]
    np.testing.assert_allclose(
        suspicion, [is_wrong[label == y].mean() for y in range(4)], atol=0.03
    )


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
    # Equal values in many orders.
    tops = [
        np.lexsort((rng.random(count), -value))[: wrong.sum()]
        for _ in range(2000)
    ]
    mean = np.mean([wrong[top].mean() for top in tops])
    assert found["precision_at_n"][0] == pytest.approx(mean, abs=2e-3)
    none = _retrieval(wrong, np.zeros(count), np.ones((1, count), np.int32))
    assert none["precision_at_n"][0] == pytest.approx(wrong.mean())


def test_a_badly_learned_class_is_not_suspected_as_a_whole(small_digits):
    """A network that gives class 3 far less than it should."""
    part = small_digits.train
    logits = 6 * np.eye(10)[part.true_label]
    logits[:, 3] -= 5.5
    found = scores_of_logits(part, dropped=logits)
    wrong = part.label != part.true_label
    np.testing.assert_array_equal(found.suggested, part.true_label)
    np.testing.assert_array_equal(found.is_suspect, wrong)
    (row,) = [r for r in evaluate_scores(found) if r["score"] == "combined"]
    assert row["average_precision"] == 1
    with pytest.raises(ValueError, match="`prior` expected 10 finite shares"):
        scores_of_logits(part, dropped=logits, prior=np.ones(9))


def test_the_temperature_undoes_a_factor(rng):
    label = rng.integers(0, 4, 4000)
    logits = rng.normal(size=(4000, 4))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.array([rng.choice(4, p=p) for p in chance])
    assert fit_temperature(3 * logits, label) == pytest.approx(3, rel=0.1)


def test_dirty_labels_do_not_make_the_network_look_unsure(rng):
    logits = 3 * rng.normal(size=(4000, 4))
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.array([rng.choice(4, p=p) for p in chance])
    surely = chance.max(axis=1) > 0.8  # So that it agrees with most of them.
    logits, label = logits[surely], label[surely]
    clean = fit_temperature(2 * logits, label)
    wrong = rng.random(len(label)) < 0.1
    dirty = np.where(wrong, (label + 1) % 4, label)
    with pytest.warns(
        UserWarning, match="About (9|10|11)% of the .* look wrong"
    ):
        found = fit_temperature(2 * logits, dirty)
    # Measured: 2.0, and without the rate of wrong labels 4.1.
    assert found == pytest.approx(clean, rel=0.2)
    # A few of few labels may be mistakes of the network.
    few = slice(0, 70)
    rare = np.where(np.arange(70) < 4, (label[few] + 1) % 4, label[few])
    fit_temperature(2 * logits[few], rare)
    # A network that knows little is not believed.
    shuffled = rng.permutation(dirty)
    assert fit_temperature(logits, shuffled) == pytest.approx(10)


def test_scores_of_the_callers_own_predictions(rng):
    from tfmemloc.data.arrays import from_arrays

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
    assert scores.names == ("combined", "dropped_margin", "disagreement")
    (suspect,) = scores.suspects()
    assert suspect["example_id"] == examples.example_id[7]
    assert suspect["suggested"] == (label[7] + 1) % 4
    assert evaluate_scores(scores) == []  # No label is known to be wrong.
    assert "known to be" not in scores.sentence()
    # What is not known is not said.
    assert not {"true_label", "subset"} & set(suspect)


def _chance(rng, label, classes):
    chance = rng.dirichlet(np.ones(classes), len(label))
    return 0.5 * chance + 0.5 * np.eye(classes)[label]


def test_predictions_may_be_probabilities_lists_and_tensors(small_digits, rng):
    part = small_digits.train
    chance = _chance(rng, part.true_label, 10)
    expected = scores_of_logits(part, dropped=np.log(chance))
    for given in (chance, chance.tolist(), tf.constant(chance)):
        found = scores_of_logits(part, dropped=given)
        np.testing.assert_allclose(found.suspicion, expected.suspicion)
        np.testing.assert_allclose(found.values, expected.values)
    chance[3] = np.eye(10)[part.label[3]]  # An exact zero.
    assert np.isfinite(scores_of_logits(part, dropped=chance).values).all()


def test_predictions_that_repeat_the_labels_are_warned_of(digits, rng):
    part = digits.train
    repeats = 6 * np.eye(10)[part.label] + rng.normal(size=(len(part), 10)) / 9
    with pytest.warns(UserWarning, match="agrees with 100.0% of the"):
        scores_of_logits(part, dropped=repeats)
    # A network that is as right on labels that it did not see.
    others = (repeats[:200], part.label[:200])
    knows = 6 * np.eye(10)[part.true_label]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores_of_logits(part, dropped=repeats, held_out=others)
        scores_of_logits(part, dropped=knows)
    wrong = repeats[:200], (part.label[:200] + (np.arange(200) % 2)) % 10
    with pytest.warns(UserWarning, match="50.0% of the held-out ones"):
        scores_of_logits(part, dropped=repeats, held_out=wrong)


def test_signed_entropy_is_its_slow_twin(small_digits, rng):
    part = small_digits.train
    by_epoch = rng.normal(size=(3, len(part), 10)) * 2
    found = scores_of_logits(part, dropped=by_epoch[-1], by_epoch=by_epoch)
    for n in (0, 41, 79):
        expected = 0.0
        for logits in by_epoch[:, n]:
            chance = np.exp(logits) / np.exp(logits).sum()
            entropy = -sum(p * np.log(p) for p in chance)
            is_label = logits.argmax() == part.label[n]
            expected += -entropy if is_label else entropy
        assert found.of("sei")[n] == pytest.approx(expected, rel=1e-5)


def test_several_judges_are_better_than_one(digits, rng):
    part = digits.train
    clear = np.log(np.eye(10)[part.true_label] + 0.3)
    judges = clear + rng.normal(size=(8, len(part), 10))
    one, all_ = (
        evaluate_scores(scores_of_logits(part, dropped=given))[0]
        for given in (judges[0], judges)
    )
    assert all_["average_precision"] > one["average_precision"] + 0.2


def test_which_shares_of_the_classes_are_the_true_ones(rng):
    """Overlapping classes, one of them four times as frequent."""
    true = (rng.random(8000) < 0.2).astype(int)
    x = rng.normal(size=8000) + true
    odds = (x - 0.5) + np.log(0.2 / 0.8)
    logits = np.stack([np.zeros(8000), odds], axis=1)
    label = np.where(rng.random(8000) < 0.05, 1 - true, true)
    examples = data.from_arrays(
        np.zeros((8000, 1, 1), np.uint8),
        label,
        np.zeros((1, 1, 1), np.uint8),
        np.zeros(1, int),
    ).train
    share = {}
    for prior in ("auto", "labels", "equal", (0.8, 0.2)):
        found = scores_of_logits(examples, dropped=logits, prior=prior)
        share[prior] = np.mean(found.suggested == 1)
    assert share["auto"] == share["labels"]
    assert share[0.8, 0.2] == pytest.approx(np.mean(odds > 0), abs=0.03)
    assert share["equal"] > 0.3
    with pytest.raises(ValueError, match="`prior` must be one of 'auto'"):
        scores_of_logits(examples, dropped=logits, prior="even")


def test_a_lean_to_labels_is_taken_out(rng):
    """Judges add a half to the label that they were trained on."""
    true = rng.integers(0, 4, 3000)
    logits = 2.5 * np.eye(4)[true] + rng.normal(size=(3000, 4))
    label = true.copy()
    wrong = rng.random(3000) < 0.15
    label[wrong] = (true[wrong] + rng.integers(1, 4, wrong.sum())) % 4
    learned = logits + 1.5 * np.eye(4)[label]
    train, others = slice(0, 2000), slice(2000, None)
    found = {}
    for name, judged in (("leans", learned), ("does not", logits)):
        found[name] = ranking._suspicion(
            losses.log_softmax(judged[train]),
            label[train],
            (losses.log_softmax(logits[others]), true[others]),
        ).sum()
    temperature = fit_temperature(logits[others], true[others])
    chance = np.exp(losses.log_softmax(learned[train] / temperature))
    trusting = 1 - ranking._true_classes(chance, label[train])
    count = wrong[train].sum()
    assert trusting[np.arange(2000), label[train]].sum() < 0.6 * count
    assert found["leans"] == pytest.approx(count, rel=0.15)
    assert found["does not"] == pytest.approx(count, rel=0.15)


def test_sure_judges_tell_the_shares_of_the_classes(rng):
    """Four classes, the largest twice the smallest; half of one is wrong."""
    true = rng.choice(4, 4000, p=[0.4, 0.2, 0.2, 0.2])
    label = true.copy()
    wrong = (true == 0) & (rng.random(4000) < 0.5)
    label[wrong] = 1 + rng.integers(0, 3, wrong.sum())
    judges = 8 * np.eye(4)[true] + rng.normal(size=(2, 4000, 4)) * 2
    judges = losses.log_softmax(judges)
    found = ranking.true_shares(judges, label, "auto")
    np.testing.assert_allclose(found, np.bincount(true) / 4000, atol=0.02)
    # The labels' shares are nearly equal, which the old rule would take.
    assert np.bincount(label).max() < 1.5 * np.bincount(label).min()
    # Judges that are not sure leave it at that.
    unsure = losses.log_softmax(judges / 8)
    np.testing.assert_allclose(
        ranking.true_shares(unsure, label, "auto"), np.full(4, 0.25)
    )
    # Nearly equal estimates are equal shares.
    same = np.arange(4000) % 4
    judges = losses.log_softmax(8 * np.eye(4)[same][np.newaxis])
    np.testing.assert_allclose(
        ranking.true_shares(judges, same, "auto"), np.full(4, 0.25)
    )


def test_bad_predictions_are_refused(digits):
    part = digits.train
    good = np.zeros((len(part), 10))
    for shape in (good[:, :9], good[0], good[np.newaxis, np.newaxis]):
        with pytest.raises(ValueError, match="`dropped` expected logits of sh"):
            scores_of_logits(part, dropped=shape)
    with pytest.raises(ValueError, match="`by_epoch` expected logits of sh"):
        scores_of_logits(part, dropped=good, by_epoch=good)
    for name in ("combined", "label", "dropped_margin"):
        with pytest.raises(ValueError, match=f"called {name!r}, as a column"):
            scores_of_logits(
                part, dropped=good, extra_scores={name: good[:, 0]}
            )
    for logits, label, words in (
        (good[:60], np.zeros(59, int), r"shapes \(59, 10\) and \(59,\)"),
        (good[:60, :9], np.zeros(60, int), "in the form of `dropped`"),
        (good[:60], np.full(60, 10), "integer labels from 0 to 9"),
        (good[:60], np.zeros(60), "labels of dtype float64"),
        (np.full((60, 10), np.nan), np.zeros(60, int), "600 predictions not"),
    ):
        with pytest.raises(ValueError, match=words):
            scores_of_logits(part, dropped=good, held_out=(logits, label))
    with pytest.raises(ValueError, match="expected a pair"):
        scores_of_logits(part, dropped=good, held_out=np.zeros(3))
    for pair, words in (
        ((good[:60], np.int64(3)), r"shapes \('M', 10\)"),
        ((good[:60].astype(str), np.zeros(60, int)), "that are numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            scores_of_logits(part, dropped=good, held_out=pair)
    with pytest.raises(ValueError, match="`dropped` expected predictions that"):
        scores_of_logits(part, dropped=good.astype(str))
    with pytest.raises(ValueError, match="10 finite shares"):
        scores_of_logits(part, dropped=good, prior=[np.inf] + [1] * 9)
    with pytest.raises(ValueError, match="that were trained on and"):
        scores_of_logits(digits, dropped=np.zeros((len(digits), 10)))
    with pytest.raises(TypeError, match="Expected Examples"):
        scores_of_logits(good, dropped=good)
    missing = np.stack([good, good])
    missing[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"`by_epoch` has logits that are not"):
        scores_of_logits(part, dropped=good, by_epoch=missing)
    one_class = part.take(part.label == 3)
    with pytest.raises(ValueError, match="Expected at least two classes"):
        scores_of_logits(one_class, dropped=good[: len(one_class)])
