"""The check that tells people whether their model is covered."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles
from tfmemloc import check_per_example_gradients
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build


@keras.saving.register_keras_serializable(package="tests")
class Scaled(keras.layers.Layer):
    """A layer of one's own, that nothing knows."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale


class WrongDense(keras.layers.Dense):
    """Claims to be Dense, and computes something else."""


def _table_model(layer):
    image = keras.Input((5,), name="row")
    x = keras.layers.Dense(7, "relu", name="first")(image)
    model = keras.Model(image, keras.layers.Dense(3)(layer(x)))
    oracles.randomize(model)
    return model


@pytest.fixture
def rows(rng):
    return {"row": rng.normal(size=(12, 5)).astype(np.float32)}


def test_a_network_of_ours_is_covered_by_closed_forms(rng):
    model = build(ModelConfig(width=0.125, expand=0.5), (8, 8, 1), 10)
    oracles.randomize(model)
    inputs = {
        "image": rng.normal(size=(10, 8, 8, 1)).astype(np.float32),
        "example_id": np.arange(10),
    }
    found = check_per_example_gradients(model, inputs, np.arange(10))
    assert len(found) == len(model.trainable_variables)
    assert {row["way"] for row in found} == {"closed form"}
    # Measured 2e-6; sums of some hundred products in float32.
    assert max(row["error"] for row in found) < 1e-4
    assert {"layer": "conv1.conv", "variable": "kernel"}.items() <= found[
        0
    ].items()


def test_an_unknown_layer_is_named_with_its_way(rows):
    model = _table_model(Scaled(name="mine"))
    found = check_per_example_gradients(model, rows, np.arange(12) % 3)
    ways = {row["layer"]: row["way"] for row in found}
    assert ways["mine"] == "vectorized_map"
    assert ways["first"] == "closed form"
    assert max(row["error"] for row in found) < 1e-4


def test_a_wrong_closed_form_would_be_seen(rows, monkeypatch):
    from tfmemloc.gradients import closed_forms

    dense = closed_forms.HANDLERS[keras.layers.Dense]
    monkeypatch.setitem(
        closed_forms.HANDLERS,
        WrongDense,
        lambda layer, x, g: dense(layer, x, 2 * g),
    )
    model = _table_model(WrongDense(6, name="wrong"))
    found = check_per_example_gradients(model, rows, np.arange(12) % 3)
    errors = {row["layer"]: row["error"] for row in found}
    assert errors["wrong"] == pytest.approx(1.0, abs=1e-3)
    assert errors["first"] < 1e-4


def test_examples_without_a_gradient_count_against_the_largest(rows):
    rows["row"][0] = 0  # Its kernel gradients in the first layer are 0.
    model = _table_model(keras.layers.Dense(6, name="second"))
    found = check_per_example_gradients(model, rows, tf.range(12) % 3)
    assert max(row["error"] for row in found) < 1e-4
