"""Checks of the arguments and inputs that the dropout layers share."""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmemloc.checks import is_integer, is_number


def check_probability(name: str, value: float) -> float:
    """The probability, refused outside of (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be above 0 and at most 1. Received: "
            f"{name}={value!r}."
        )
    return float(value)


def check_seed(seed: int) -> int:
    """The seed, refused if it is no integer from 0 to 2**63 - 1."""
    if not (is_integer(seed) and 0 <= seed < 2**63):
        raise ValueError(
            "`seed` must be an integer from 0 to 2**63 - 1. Received: "
            f"seed={seed!r} of type {type(seed).__name__}."
        )
    return int(seed)


def check_axis(axis: int) -> int:
    """The axis of the units, refused if it is that of the examples."""
    if not isinstance(axis, int) or isinstance(axis, bool) or axis == 0:
        raise ValueError(
            "`axis` must be the axis of the units: an integer other than 0, "
            f"the axis of the examples. Received: axis={axis!r}."
        )
    return axis


def unit_count(layer: keras.layers.Layer, shape) -> int:
    """The number of units of an input shape, refused if not known."""
    if len(shape) < 2 or not -len(shape) < layer.axis < len(shape):
        raise ValueError(
            f"Layer '{layer.name}' expected inputs of rank 2 or more that "
            f"have an axis {layer.axis}. Received: shape {tuple(shape)}."
        )
    units = shape[layer.axis]
    if units is None:
        raise ValueError(
            f"Layer '{layer.name}' needs a known number of units on axis "
            f"{layer.axis}. Received: shape {tuple(shape)}. Give the model's "
            "input a fixed size there, or choose another `axis`."
        )
    return int(units)


def checked_ids(layer, inputs, example_ids, memory_off: int) -> tf.Tensor:
    """The ids as int64 [batch], or an error that says what is wrong.

    `memory_off` is the one negative id that is allowed.
    """
    if example_ids is None:
        raise ValueError(
            f"Layer '{layer.name}' got no example ids, but needs them in "
            'training and with inference="tied". Call it as '
            "layer(x, example_ids, training=...), and feed the model "
            '{"<input name>": ..., "example_id": ...}; '
            "`tfmemloc.attach_ids(dataset)` adds ids to a tf.data.Dataset."
        )
    try:
        ids = tf.convert_to_tensor(example_ids)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Layer '{layer.name}' expected example ids that are integers. "
            f"Received: {example_ids!r}."
        ) from error
    if not ids.dtype.is_integer:
        raise ValueError(
            f"Layer '{layer.name}' expected example ids of an integer dtype. "
            f"Received: dtype {ids.dtype.name}. Floats cannot tell large ids "
            'apart; make the input `keras.Input((), dtype="int64")`.'
        )
    batch = inputs.shape[0]
    if ids.shape.rank != 1 or not ids.shape.is_compatible_with([batch]):
        raise ValueError(
            f"Layer '{layer.name}' expected example ids of shape [{batch}], "
            "one for each example of the batch. Received: shape "
            f"{ids.shape}. Scalar ids per example are declared by "
            '`keras.Input((), dtype="int64")`.'
        )
    ids = tf.cast(ids, tf.int64)
    checks = [
        tf.debugging.assert_non_negative(
            tf.where(ids == memory_off, tf.zeros_like(ids), ids),
            f"Layer '{layer.name}': example ids must not be negative, but for "
            "tfmemloc.MEMORY_OFF.",
        )
    ]
    if batch is None or ids.shape[0] is None:
        checks.append(
            tf.debugging.assert_equal(
                tf.shape(ids)[0],
                tf.shape(inputs)[0],
                f"Layer '{layer.name}': expected one example id for each "
                "example of the batch.",
            )
        )
    with tf.control_dependencies([check for check in checks if check]):
        return tf.identity(ids)
