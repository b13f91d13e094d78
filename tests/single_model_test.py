"""Membership without shadows: planted memory, none at all, bad input."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

from tfmemloc import SingleModelConfig, audit_single_model, data
from tfmemloc.audits.single_model import features

AT_A_TENTH = SingleModelConfig(rates=(0.1,))


class _Says(keras.layers.Layer):
    """Gives its inputs as logits."""

    def call(self, x):
        return x


def _network():
    given = keras.Input((4,))
    return keras.Model(given, _Says()(given))


def _examples(rng, gap, spread=2.0, count=1200):
    """Confidences that depend on the example, and `gap` more for members."""
    label = rng.integers(0, 4, count)
    member = rng.random(count) < 0.5
    hard = rng.normal(size=count) * spread
    logits = rng.normal(size=(count, 4)) * 0.1
    # How hard an example is shows in what is said of the other classes.
    others = (label + 1) % 4
    logits[np.arange(count), others] += np.exp(hard / 2)
    phi = hard + rng.normal(size=count) * 0.3 + gap * member
    rest = logits.copy()
    rest[np.arange(count), label] = -np.inf
    total = np.logaddexp.reduce(rest, axis=1)
    logits[np.arange(count), label] = phi + total
    subset = np.where(member, "clean", "test")
    return data.from_arrays(logits.astype(np.float32), label, subset=subset)


def _rows(found):
    return {(r["attack"], r["fpr"]): r for r in found.rows()}


def test_quantiles_find_members_that_one_threshold_hides(rng):
    examples = _examples(rng, gap=1.5)
    found = audit_single_model(_network(), examples, AT_A_TENTH)
    rows = _rows(found)
    quantile, loss = rows["quantile", 0.1], rows["loss", 0.1]
    assert quantile["measured_fpr"] == pytest.approx(0.1, abs=0.05)
    assert loss["measured_fpr"] == pytest.approx(0.1, abs=0.05)
    assert quantile["tpr"] > 2 * loss["tpr"]
    assert quantile["low"] <= quantile["tpr"] <= quantile["high"]
    assert "(quantile)" in found.sentence()
    again = audit_single_model(_network(), examples, AT_A_TENTH)
    np.testing.assert_array_equal(found.tpr, again.tpr)


def test_nothing_memorized_is_not_found(rng):
    found = audit_single_model(_network(), _examples(rng, gap=0.0), AT_A_TENTH)
    for row in found.rows():
        assert row["tpr"] == pytest.approx(row["measured_fpr"], abs=0.05)


def test_the_judged_logit_is_no_feature(rng):
    logits, label = rng.normal(size=(6, 4)), np.arange(6) % 4
    changed = logits.copy()
    changed[np.arange(6), label] += 5
    np.testing.assert_allclose(
        features(logits, label), features(changed, label)
    )
    others = np.delete(logits[2], label[2])
    expected = np.sort(log_softmax(others))[::-1]
    np.testing.assert_allclose(features(logits, label)[2, :3], expected)


def test_bad_input_is_refused(rng):
    few = _examples(rng, gap=1.0, count=40)
    with pytest.raises(ValueError, match="40 or more examples that were not"):
        audit_single_model(_network(), few)
    with pytest.raises(ValueError, match="rates.*at most 0.5"):
        SingleModelConfig(rates=(0.9,))
