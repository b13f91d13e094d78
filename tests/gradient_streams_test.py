"""Gradients of all examples: in chunks, by subset, and within a budget."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import assert_close, randomize
from tfmemloc import data, gradients, graph, losses, models
from tfmemloc.configs import ModelConfig
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.gradients.engine import GradientEngine


@pytest.fixture(scope="module")
def network():
    return models.build(ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 10)


def test_streams_with_one_trace_in_any_chunks(network, small_digits):
    engine = GradientEngine(network)
    groups = graph.layer_groups(network)
    bytes_each = gradients.bytes_per_example(engine, small_digits)
    chunked = gradients.per_example_norms(
        engine, small_digits, groups=groups, memory_budget=7 * bytes_each
    )
    whole = gradients.per_example_norms(engine, small_digits, groups=groups)
    assert chunked.shape == (120, 9)
    # Convolutions of 7 and of 120 images sum in another order.
    np.testing.assert_allclose(chunked, whole, rtol=1e-4)
    assert engine.trace_count() == 1
    by_variable = gradients.per_example_norms(engine, small_digits)
    np.testing.assert_allclose(
        (by_variable**2).sum(axis=1), (whole**2).sum(axis=1), rtol=1e-4
    )


def test_dots_with_the_mean_gradient_average_to_its_square(
    network, small_digits
):
    engine = GradientEngine(network)
    train = small_digits.train
    subsets = gradients.subset_gradients(engine, train)
    mean = [sum(parts) for parts in zip(*subsets.values(), strict=True)]
    dots = gradients.per_example_dots(engine, train, mean)
    square = sum(np.sum(g**2) for g in mean)
    np.testing.assert_allclose(dots.sum(axis=1).mean(), square, rtol=1e-4)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_subsets_add_up_to_the_gradient_of_the_whole(
    network, small_digits, batch_statistics
):
    randomize(network)
    engine = GradientEngine(network)
    before = network.get_weights()
    train = small_digits.train
    subsets = gradients.subset_gradients(
        engine,
        small_digits,
        batch_statistics=batch_statistics,
        batch_size=len(train),
    )
    assert list(subsets) == ["clean", "noisy", "test"]
    # Training moves the statistics; they must be as they were.
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with tf.GradientTape() as tape:
        logits = network(
            {
                "image": scale_pixels(train.inputs["image"]),
                "example_id": train.example_id,
            },
            training=batch_statistics,
        )
        loss = tf.reduce_mean(
            losses.cross_entropy(tf.constant(train.label), logits)
        )
    whole = tape.gradient(loss, [v.value for v in engine.variables])
    network.set_weights(before)
    for clean, noisy, expected in zip(
        subsets["clean"], subsets["noisy"], whole, strict=True
    ):
        assert_close(clean + noisy, expected, rtol=1e-4)


def test_accounts_are_in_the_order_of_the_examples(network, small_digits):
    engine = GradientEngine(network)
    account = gradients.account_subsets(engine, small_digits)
    norms = gradients.per_example_norms(engine, small_digits)
    np.testing.assert_allclose(
        np.sqrt(account.norms_squared), norms, rtol=1e-3, atol=1e-6
    )


def test_bad_input_is_refused(network, small_digits):
    with pytest.raises(ValueError, match="one of 'layerwise'"):
        GradientEngine(network, engine="fast")
    frozen = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    frozen.trainable = False
    with pytest.raises(ValueError, match="no trainable weights"):
        GradientEngine(frozen)
    two = small_digits.take(np.arange(2))
    mean_loss = GradientEngine(
        network, loss=keras.losses.SparseCategoricalCrossentropy(True)
    )
    with pytest.raises(ValueError, match="loss of each example"):
        mean_loss.norms_squared(data.as_arrays(two), two.label)
    engine = GradientEngine(network)
    with pytest.raises(ValueError, match="Received: 1,000 bytes"):
        gradients.per_example_norms(engine, small_digits, memory_budget=1000)
    with pytest.raises(ValueError, match="Expected a direction of shapes"):
        gradients.per_example_dots(engine, small_digits, [np.zeros(3)])
    few = models.build(ModelConfig(width=0.125), (8, 8, 1), 4)
    with pytest.raises(ValueError, match="'resnet9' has 4 outputs"):
        gradients.per_example_norms(GradientEngine(few), small_digits)


def test_gradients_that_are_not_finite_name_the_examples(small_digits):
    model = models.build(
        ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 10
    )
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    first = int(small_digits.example_id[0])
    with pytest.raises(FloatingPointError, match=f"ids .{first}, "):
        gradients.per_example_norms(GradientEngine(model), small_digits)


def test_memory_estimate_covers_every_layer(small_digits):
    narrow, wide = (
        gradients.bytes_per_example(
            GradientEngine(
                models.build(
                    ModelConfig(width=w, dropout="none"), (8, 8, 1), 10
                )
            ),
            small_digits,
        )
        for w in (0.125, 0.25)
    )
    assert 1.3 * narrow < wide
    # At least all activations, once for each of the nine layers' outputs.
    model = models.build(
        ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 10
    )
    activations = sum(
        4 * np.prod(layer.output.shape[1:]) for layer in model.layers[1:]
    )
    assert narrow > activations


def test_examples_of_other_types_stream(network):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 8, 8, 1), np.uint8)
    examples = data.from_arrays(
        pixels[:8], np.arange(8), pixels[8:], np.array([9]), classes=10
    )
    engine = GradientEngine(network)
    found = gradients.per_example_gradients(engine, examples)
    norms = gradients.per_example_norms(engine, examples)
    for g, column in zip(found, norms.T, strict=True):
        assert_close(
            np.sqrt((g**2).reshape(9, -1).sum(axis=1)), column, rtol=1e-4
        )
