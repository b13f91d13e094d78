"""Loss and correctness of each task against slow twins."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles
from tfmemloc import data, evaluation, losses, training
from tfmemloc.configs import TrainConfig
from tfmemloc.gradients import GradientEngine


def _next_token_twin(label, logits):
    """A loop over examples and positions."""
    entropy, share, whole = [], [], []
    for row, scores in zip(label, logits, strict=True):
        counted = [t for t in range(len(row)) if row[t] >= 0]
        each = [
            oracles.cross_entropy(scores[[t]], [row[t]])[0] for t in counted
        ]
        right = [int(np.argmax(scores[t])) == row[t] for t in counted]
        entropy.append(np.mean(each))
        share.append(np.mean(right))
        whole.append(float(all(right)))
    return np.array(entropy), np.array(share), np.array(whole)


def test_next_tokens_are_means_over_the_positions_that_count(rng):
    logits = rng.normal(size=(20, 7, 5)).astype(np.float32)
    label = logits.argmax(axis=-1)
    label[5:, 2] = rng.integers(0, 5, 15)
    label[:, -1] = -1
    entropy, share, whole = _next_token_twin(label, logits)
    np.testing.assert_allclose(
        losses.measured_losses(label, logits), entropy, rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.cross_entropy(tf.constant(label), tf.constant(logits)),
        entropy,
        rtol=1e-5,
    )
    np.testing.assert_allclose(losses.correct(label, logits), share)
    np.testing.assert_array_equal(
        losses.correct(label, logits, count="all"), whole
    )
    assert 0 < whole.mean() < 1


def test_classes(rng):
    logits = rng.normal(size=(30, 4)).astype(np.float32)
    label = rng.integers(0, 4, 30)
    expected = oracles.cross_entropy(logits, label)
    np.testing.assert_allclose(
        losses.measured_losses(label, logits), expected, rtol=1e-6
    )
    np.testing.assert_allclose(
        losses.cross_entropy(tf.constant(label), tf.constant(logits)),
        expected,
        rtol=1e-5,
    )
    np.testing.assert_array_equal(
        losses.correct(label, logits), logits.argmax(1) == label
    )


@pytest.mark.parametrize(
    ("label", "output", "words"),
    [
        ((5,), (5, 1), "Received: one output. For two classes"),
        ((5,), (5, 3, 4), r"expected outputs \[batch, classes\]"),
        ((5, 3), (5, 4), r"expected outputs \[batch, time, vocabulary\]"),
    ],
)
def test_other_tasks_are_refused(label, output, words):
    with pytest.raises(ValueError, match=words):
        losses.cross_entropy(tf.zeros(label, tf.int64), tf.zeros(output))


def _language_model():
    tokens = keras.Input((6,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(8, 12)(tokens)
    x = keras.layers.Dense(24, activation="relu")(x)
    return keras.Model(tokens, keras.layers.Dense(8)(x))


def test_a_language_model_trains_and_is_measured(tmp_path):
    tokens = (np.arange(60)[:, np.newaxis] + np.arange(6)) % 8
    examples = data.from_arrays(tokens, subset=["clean"] * 50 + ["test"] * 10)
    assert examples.task == "next_token" and examples.classes == 8
    keras.utils.set_random_seed(0)
    run = training.train(
        tmp_path / "run",
        model=_language_model(),
        examples=examples,
        training=TrainConfig(
            epochs=40, batch_size=16, learning_rate=0.05, optimizer="adam"
        ),
        progress=False,
    )
    metrics = evaluation.evaluate(run.model(), examples, count="all")
    assert metrics.of("test")["accuracy"] == 1
    assert metrics.of("test")["loss"] < 0.2
    engine = GradientEngine(run.model())
    assert engine.norms_squared(
        data.as_arrays(examples.test), examples.test.label
    ).shape == (10, len(engine.variables))
    recording = training.Recording.open(run.directory / "recording")
    assert (recording.of(examples.train).margin[-1] > 0).all()


def test_a_rule_of_ones_own_is_what_is_minimized(tmp_path, small_digits):
    image = keras.Input((8, 8, 1), name="image")
    out = keras.layers.Dense(10)(keras.layers.Flatten()(image))

    def nothing(model, inputs, label):
        logits = model(inputs["image"], training=True)
        return 0.0 * losses.cross_entropy(label, logits), logits

    model = keras.Model(image, out)
    before = model.get_weights()
    run = training.train(
        tmp_path / "run",
        model=model,
        examples=small_digits,
        rule=nothing,
        training=TrainConfig(epochs=1, batch_size=40, weight_decay=0.0),
        progress=False,
    )
    assert run.training.rule.endswith("nothing")
    for a, b in zip(before, run.model().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_generalized_rule_is_its_formula(rng):
    from tfmemloc.training.rules import generalized_cross_entropy as module

    features = keras.Input((6,), name="features")
    model = keras.Model(features, keras.layers.Dense(3)(features))
    x, label = rng.normal(size=(8, 6)), rng.integers(0, 3, 8)
    found, logits = module.rule(
        model,
        {"features": tf.constant(x, tf.float32)},
        tf.constant(label),
    )
    chance = np.exp(losses.log_softmax(logits.numpy()))[np.arange(8), label]
    np.testing.assert_allclose(found, (1 - chance**0.7) / 0.7, rtol=1e-5)


def test_an_unknown_rule_is_refused(tmp_path, small_digits):
    with pytest.raises(ValueError, match="`rule` must be one of 'cross_ent"):
        training.train(
            tmp_path / "run",
            examples=small_digits,
            training=TrainConfig(rule="magic"),
        )
