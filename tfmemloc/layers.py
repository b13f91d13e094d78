"""Dropout layers that confine, or fail to confine, what is memorized.

`ExampleTiedDropout` is the paper's layer (section 5). `SparseDropout` is one
of its controls: the same number of units is off, but for all examples alike.
The other control is `keras.layers.Dropout`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import masks

INFERENCE = ("drop", "expected", "tied")
RESCALE = ("none", "mass")


@keras.saving.register_keras_serializable(package="tfmemloc")
class ExampleTiedDropout(keras.layers.Layer):
    """Gives each training example a few units of its own, to be dropped later.

    Of the C units along `axis`, the first `int(p_gen * C)` are *generalization
    units*: always on. Of the others, the *memorization units*, each example
    keeps each with probability `p_mem`, the same ones at every step (one
    decision per channel, broadcast over space and time). What is particular to
    one example is learned by the units that only few examples share, and goes
    when they are switched off. Nothing is rescaled in training.

    At inference the layer does what `inference` says:

    - `"drop"`: memorization units off; needs no ids.
    - `"expected"`: memorization units times `p_mem`; needs no ids.
    - `"tied"`: the example's own mask, as in training.

    The behaviour is part of the layer's configuration, because Keras caches
    traced functions; `tfmemloc.with_inference(model, "tied")` makes a model
    with another one that shares the weights.

    Args:
        p_gen: fraction of generalization units, in (0, 1]; the layer refuses
            to be built where it leaves no unit of one of the two kinds.
        p_mem: probability with which an example keeps a memorization unit,
            in (0, 1].
        seed: names the stream of masks, in [0, 2**63). Give each tied layer of
            a model its own (`tfmemloc.fold_seed(seed, i)`).
        axis: the axis of the units; -1 is channels last.
        inference: `"drop"`, `"expected"` or `"tied"`.
        rescale: `"none"` (later users of the method call it the original), or
            `"mass"`, the rescaling in the authors' code: in drop mode the
            generalization units are multiplied by
            (p_gen + p_mem) / p_gen. Measured on digits, "none" is better.

    Call arguments:
        inputs: float tensor of rank 2 or more, [batch, ..., C] or, by `axis`,
            [batch, C, ...].
        example_ids: integer tensor [batch], not negative. Needed in training
            and where `inference="tied"`.
        training: True uses the example's own mask.

    Output shape: that of `inputs`.

    Raises:
        ValueError: an argument out of its range, ids that are missing, not
            integers or not of shape [batch].
        tf.errors.InvalidArgumentError: at run time, negative ids or another
            number of ids than of examples.

    Example:
        >>> layer = ExampleTiedDropout(p_gen=0.5, p_mem=0.25, seed=0)
        >>> x = tf.ones([2, 8])
        >>> layer(x, tf.constant([7, 8]), training=False).numpy()[0]
        array([1., 1., 1., 1., 0., 0., 0., 0.], dtype=float32)

    Reference:
        Maini et al., "Can Neural Network Memorization Be Localized?",
        ICML 2023, section 5.
    """

    def __init__(
        self,
        p_gen: float = 0.2,
        p_mem: float = 0.1,
        *,
        seed: int = 0,
        axis: int = -1,
        inference: str = "drop",
        rescale: str = "none",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.p_gen = _check_probability("p_gen", p_gen)
        self.p_mem = _check_probability("p_mem", p_mem)
        self.seed = _check_seed(seed)
        self.axis = _check_axis(axis)
        self.inference = check_choice("inference", inference, INFERENCE)
        self.rescale = check_choice("rescale", rescale, RESCALE)
        self.supports_masking = True

    def build(self, inputs_shape, example_ids_shape=None):
        """Fixes the number of units of each kind."""
        self.units = _unit_count(self, inputs_shape)
        self.generalization_units = int(self.p_gen * self.units)
        if self.generalization_units == 0:
            raise ValueError(
                f"Layer '{self.name}' would have no generalization units: "
                f"int(p_gen * units) = int({self.p_gen} * {self.units}) = 0. "
                f"Expected at least 1. Raise p_gen to 1/{self.units} or more, "
                "or tie a wider layer."
            )
        if self.generalization_units == self.units:
            raise ValueError(
                f"Layer '{self.name}' has no memorization units left: "
                f"int(p_gen * units) = int({self.p_gen} * {self.units}) = "
                f"{self.units}. Expected p_gen < 1."
            )
        self.built = True

    def call(self, inputs, example_ids=None, training=None):
        """Multiplies each unit by 0, 1 or, in expected mode, `p_mem`."""
        if training or self.inference == "tied":
            scale = self._example_scale(inputs, example_ids)
        else:
            scale = tf.constant(self.inference_scale()[np.newaxis])
        shape = [1] * inputs.shape.rank
        shape[0], shape[self.axis] = -1, self.units
        return inputs * tf.cast(tf.reshape(scale, shape), inputs.dtype)

    def inference_scale(self) -> np.ndarray:
        """What each unit is multiplied by when no ids are used: float32 [C]."""
        scale = np.ones(self.units, np.float32)
        if self.inference == "expected":
            scale[self.generalization_units :] = self.p_mem
        else:
            scale[self.generalization_units :] = 0.0
            if self.rescale == "mass":
                scale *= (self.p_gen + self.p_mem) / self.p_gen
        return scale

    def example_units(self, example_ids: np.ndarray) -> np.ndarray:
        """Which units are on for each example in training: bool [N, C]."""
        on = np.ones((len(example_ids), self.units), bool)
        on[:, self.generalization_units :] = masks.example_mask_numpy(
            self.seed,
            example_ids,
            self.units - self.generalization_units,
            self.p_mem,
        )
        return on

    def _example_scale(self, inputs, example_ids):
        """The masks of the given examples, [batch, C]."""
        ids = _check_ids(self, inputs, example_ids)
        own = masks.example_mask(
            self.seed, ids, self.units - self.generalization_units, self.p_mem
        )
        # Not tf.pad: under vectorized_map it forgets its constant_values.
        always = tf.ones([tf.shape(own)[0], self.generalization_units], tf.bool)
        return tf.cast(tf.concat([always, own], axis=1), inputs.dtype)

    def compute_output_shape(self, inputs_shape, example_ids_shape=None):
        """The shape of the inputs."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer anew."""
        return {
            **super().get_config(),
            "p_gen": self.p_gen,
            "p_mem": self.p_mem,
            "seed": self.seed,
            "axis": self.axis,
            "inference": self.inference,
            "rescale": self.rescale,
        }


@keras.saving.register_keras_serializable(package="tfmemloc")
class SparseDropout(keras.layers.Layer):
    """Switches the same units off for every example, in training and after.

    The paper's *sparse* control: a narrower network. Exactly
    `round(rate * C)` units (but never all of them), chosen by the seed, are
    off, and the others are multiplied by C / (number of units on), which is
    1 / (1 - rate) up to that rounding.

    Args:
        rate: fraction of units that are off, in [0, 1).
        seed: chooses the units, in [0, 2**63).
        axis: the axis of the units; -1 is channels last.

    Call arguments:
        inputs: float tensor of rank 2 or more.

    Output shape: that of `inputs`.
    """

    def __init__(
        self, rate: float, *, seed: int = 0, axis: int = -1, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(
                "`rate` must be at least 0 and below 1. Received: "
                f"rate={rate!r}."
            )
        self.rate = float(rate)
        self.seed = _check_seed(seed)
        self.axis = _check_axis(axis)
        self.supports_masking = True

    def build(self, inputs_shape):
        """Chooses the units that stay on."""
        self.units = _unit_count(self, inputs_shape)
        on = max(1, self.units - round(self.rate * self.units))
        order = np.argsort(
            masks.hash_bits_numpy(self.seed, np.zeros(1, np.int64), self.units),
            kind="stable",
        )[0]
        self._scale = np.zeros(self.units, np.float32)
        self._scale[order[:on]] = self.units / on
        self.built = True

    def call(self, inputs):
        """Multiplies each unit by 0 or by C / (number of units on)."""
        shape = [1] * inputs.shape.rank
        shape[self.axis] = self.units
        return inputs * tf.constant(self._scale.reshape(shape), inputs.dtype)

    def compute_output_shape(self, inputs_shape):
        """The shape of the inputs."""
        return inputs_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer anew."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "seed": self.seed,
            "axis": self.axis,
        }


def dropped_fraction(p_gen: float, p_mem: float) -> float:
    """The fraction of units that a tied layer switches off in training.

    A standard or sparse dropout of this rate is the fair control.
    """
    return (1 - p_gen) * (1 - p_mem)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `choices`, else raises ValueError."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{name}` must be one of {listed}. Received: {name}={value!r}."
        )
    return value


def _check_probability(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be above 0 and at most 1. Received: "
            f"{name}={value!r}."
        )
    return float(value)


def _check_seed(seed: int) -> int:
    if not (isinstance(seed, int | np.integer) and 0 <= seed < 2**63):
        raise ValueError(
            "`seed` must be an integer from 0 to 2**63 - 1. Received: "
            f"seed={seed!r} of type {type(seed).__name__}."
        )
    return int(seed)


def _check_axis(axis: int) -> int:
    if not isinstance(axis, int) or axis == 0:
        raise ValueError(
            "`axis` must be the axis of the units: an integer other than 0, "
            f"the axis of the examples. Received: axis={axis!r}."
        )
    return axis


def _unit_count(layer: keras.layers.Layer, shape) -> int:
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


def _check_ids(layer, inputs, example_ids) -> tf.Tensor:
    """The ids as int64 [batch], or an error that says what is wrong."""
    if example_ids is None:
        raise ValueError(
            f"Layer '{layer.name}' got no example ids, but needs them in "
            'training and with inference="tied". Call it as '
            "layer(x, example_ids, training=...), and feed the model "
            '{"image": ..., "example_id": ...}; '
            "`tfmemloc.attach_ids(dataset)` adds ids to a tf.data.Dataset."
        )
    ids = tf.convert_to_tensor(example_ids)
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
            ids, f"Layer '{layer.name}': example ids must not be negative."
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
