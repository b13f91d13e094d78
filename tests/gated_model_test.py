"""A network with gates behind its units: its numbers and its traces."""

import keras
import numpy as np
import tensorflow as tf

from tfmemloc.data.kinds import scale_pixels
from tfmemloc.units import (
    GatedModel,
    SearchConfig,
    UnitGates,
    drawn,
    rankings,
)
from tfmemloc.units import search as searching
from tfmemloc.units.perturbation import perturbed
from tfmemloc.units.sought import Sought


def _gated(model, examples, **fields):
    return GatedModel(model, UnitGates(model), examples, SearchConfig(**fields))


def test_units_are_ranked_by_their_mean_activation(small_network, small_digits):
    gates = UnitGates(small_network)
    gated = _gated(small_network, small_digits, bystanders=1)
    part = small_digits.take(np.arange(3))
    view = keras.Model(
        small_network.input,
        small_network.get_layer("conv1.relu").output,
    )
    units = view(
        {
            "image": scale_pixels(part.inputs["image"]),
            "example_id": part.example_id,
        }
    )
    activity = gated.activity(part)
    np.testing.assert_allclose(
        activity[:, : gates.sizes[0]],
        np.abs(units).mean(axis=(1, 2)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_removed_units_may_give_their_mean(small_network, small_digits):
    gated = _gated(
        small_network,
        small_digits,
        removed_value="mean",
        population=50,
        bystanders=1,
        memory_budget_mib=2,  # Several chunks, the last one filled up.
    )
    ids = drawn(small_digits.train.example_id, 50, 0, "population")
    chosen = small_digits.of_ids(ids)
    view = keras.Model(
        small_network.input, small_network.get_layer("conv2.relu").output
    )
    units = view(
        {
            "image": scale_pixels(chosen.inputs["image"]),
            "example_id": chosen.example_id,
        }
    )
    np.testing.assert_allclose(
        gated._fill[8:24], np.mean(units, axis=(0, 1, 2)), rtol=1e-4
    )


def test_nothing_is_traced_again_as_examples_finish(
    small_network, small_digits
):
    gated = _gated(small_network, small_digits, bystanders=3)
    first_order = rankings.named("first_order")
    for count in (40, 7):
        block = Sought.single(small_digits.take(np.arange(count)))
        searching.search(gated, block, first_order)
        searching.sizes_in_order(gated, block, rankings.named("activations"))
        # own gradient, predicted, activity, population, bystanders
        assert gated.trace_count() == 5


def test_perturbed_copies_are_a_function_of_seed_and_id(rng):
    image = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    ids = np.array([5, 9, 11])
    together = perturbed(tf.constant(image), tf.constant(ids), 4, 0.01, 0)
    alone = perturbed(
        tf.constant(image[1:2]), tf.constant(ids[1:2]), 4, 0.01, 0
    )
    np.testing.assert_allclose(together[1:2], alone, atol=1e-7)
    noise = together.numpy() - image[:, np.newaxis]
    norms = np.sqrt((noise**2).sum(axis=(2, 3, 4)))
    expected = 0.01 * np.sqrt((image**2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(
        norms, np.repeat(expected[:, np.newaxis], 4, 1), rtol=1e-3
    )
    other = perturbed(tf.constant(image), tf.constant(ids), 4, 0.01, 1)
    assert np.abs(together - other).max() > 1e-4
