"""Are per-example gradients of a model right, and fast?

Each layer has a closed form, or falls back on `tf.vectorized_map`; whether a
model of one's own is covered, and to which precision, is a question that one
call answers: gradients of a few examples by the engine, beside those of a tape
that sees one example at a time.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import tracing
from tfmemloc.gradients.calls import dense_gradients
from tfmemloc.gradients.engine import GradientEngine, Inputs
from tfmemloc.losses import Loss

_MOST = 8


def check_per_example_gradients(
    model: keras.Model, inputs: Inputs, label: Any, *, loss: Loss | None = None
) -> list[dict[str, Any]]:
    """Compares the engine's gradients with those of single examples.

    Args:
        model: any Keras model with trainable weights.
        inputs: by name, [B, ...], the ids among them where the model takes
            some. The first 8 examples are compared.
        label: [B], or [B, time] next tokens.
        loss: as of `GradientEngine`.

    Returns:
        A row for each trainable variable: `layer` and `variable`, `way`
        (`closed form` or `vectorized_map`), and `error`, the largest length of
        a difference of an example's gradients over the length of the gradient
        (of the largest one, where an example has none). Up to 1e-4 is rounding
        in float32.

    Raises:
        ValueError: the engine does not take the model; says why.

    Example:
        >>> rows = check_per_example_gradients(model, inputs, labels)
        >>> max(row["error"] for row in rows) < 1e-3
        True
    """
    engine = GradientEngine(model, loss=loss)
    inputs = {name: values[:_MOST] for name, values in inputs.items()}
    label = label[:_MOST]
    found = engine.gradients(inputs, label)
    x, label = engine.as_batch(inputs, label)
    single = tracing.function(lambda *one: _slow(engine, *one))
    slow = [
        single(*tf.nest.map_structure(lambda t, n=n: t[n : n + 1], (x, label)))
        for n in range(len(label))
    ]
    layer_of = {
        id(variable): layer.name
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.Model)
        for variable in layer.trainable_variables
    }
    rows = []
    for v, variable in enumerate(engine.variables):
        expected = np.stack([gradients[v] for gradients in slow])
        name = layer_of.get(id(variable), "")
        rows.append(
            {
                "layer": name,
                "variable": variable.path.split("/")[-1],
                "way": "vectorized_map"
                if name in engine.fallbacks
                else "closed form",
                "error": _error(np.asarray(found[v]), expected),
            }
        )
    return rows


def _slow(engine: GradientEngine, x, label) -> list[tf.Tensor]:
    """The gradients of one example, by a tape."""
    with tf.GradientTape() as tape:
        losses, _ = engine._forward(x, label)
        total = tf.reduce_sum(losses)
    return dense_gradients(tape, total, engine.variables)


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative length of a difference, over examples."""
    count = len(expected)
    found, expected = found.reshape(count, -1), expected.reshape(count, -1)
    length = np.linalg.norm(expected, axis=1)
    length = np.where(length > 0, length, length.max())
    difference = np.linalg.norm(found - expected, axis=1)
    if not length.max():
        return float(difference.max())
    return float((difference / length).max())
