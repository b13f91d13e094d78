"""`ExampleTiedDropout`: confines memorization to units that can be dropped.

The layer of the paper (section 5). Its controls are `SparseDropout` and
`keras.layers.Dropout`.
"""

from __future__ import annotations

from typing import Any, get_args

import keras
import numpy as np
import tensorflow as tf

from tfmemloc.checks import check_choice, is_number
from tfmemloc.configs import Inference
from tfmemloc.layers.arguments import (
    check_axis,
    check_probability,
    check_seed,
    checked_ids,
    unit_count,
)
from tfmemloc.layers.masks import example_mask, example_mask_numpy

INFERENCE = get_args(Inference)

RESCALE = ("none", "mass")

# Stands for the id of an example whose memorization units are all off, also
# in training. No id of data: it is the one that nobody gives by accident.
MEMORY_OFF = -(2**63)


@keras.saving.register_keras_serializable(package="tfmemloc")
class ExampleTiedDropout(keras.layers.Layer):
    """Gives each training example a few units of its own, to be dropped later.

    Of the C units along `axis`, the first `int(p_gen * C)` are *generalization
    units*: always on. Of the others, the *memorization units*, each example
    keeps each with probability `p_mem`, the same ones at every step (one
    decision per channel, broadcast over space and time). The units that only
    few examples share learn what is particular to one example; when they are
    switched off, it is forgotten. Nothing is rescaled in training.

    At inference the layer does what `inference` says:

    - `"drop"`: memorization units off; needs no ids.
    - `"expected"`: memorization units times `p_mem`; needs no ids.
    - `"tied"`: the example's own mask, as in training.

    Where an example's id is `tfmemloc.MEMORY_OFF`, its memorization units are
    off in training as well: so the dropped network can be trained beside the
    tied one, in the same batch.

    The behaviour is part of the layer's configuration, because Keras caches
    traced functions; `tfmemloc.with_inference(model, "tied")` makes a new model
    with that behaviour, which shares the weights.

    Args:
        p_gen: fraction of generalization units, in [0, 1]; with 0 all units
            are memorization units, which an expanded network adds (see
            `tie_dropout`). Otherwise the layer refuses to be built where no
            unit of one of the two kinds is left.
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
        example_ids: integer tensor [batch], not negative, or `MEMORY_OFF`.
            Needed in training and where `inference="tied"`.
        training: True uses the example's own mask.

    Output shape: that of `inputs`.

    Raises:
        ValueError: an argument out of its range, ids that are missing, not
            integers or not of shape [batch].
        tf.errors.InvalidArgumentError: at run time, negative ids or another
            number of ids than of examples. Not under XLA, which leaves such
            checks out; `train` checks the ids before.

    Example:
        >>> layer = ExampleTiedDropout(p_gen=0.5, p_mem=0.25, seed=0)
        >>> x = tf.ones([2, 8])
        >>> layer(x, tf.constant([7, 8]), training=False).numpy()[0]
        array([1., 1., 1., 1., 0., 0., 0., 0.], dtype=float32)
        >>> from tfmemloc import MEMORY_OFF
        >>> ids = tf.constant([7, MEMORY_OFF], tf.int64)
        >>> layer(x, ids, training=True).numpy()[1]
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
        is_zero = is_number(p_gen) and p_gen == 0
        self.p_gen = 0.0 if is_zero else check_probability("p_gen", p_gen)
        self.p_mem = check_probability("p_mem", p_mem)
        self.seed = check_seed(seed)
        self.axis = check_axis(axis)
        self.inference = check_choice("inference", inference, INFERENCE)
        self.rescale = check_choice("rescale", rescale, RESCALE)
        if self.rescale == "mass" and not self.p_gen:
            raise ValueError(
                '`rescale="mass"` multiplies the generalization units. '
                "Expected p_gen above 0. Received: p_gen=0."
            )
        self.supports_masking = True

    def build(self, inputs_shape, example_ids_shape=None):
        """Fixes the number of units of each kind."""
        self.units = unit_count(self, inputs_shape)
        self.generalization_units = int(self.p_gen * self.units)
        if self.generalization_units == 0 and self.p_gen:
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
        ids = np.asarray(example_ids)
        has_memory = ids != MEMORY_OFF
        on = np.ones((len(ids), self.units), bool)
        on[:, self.generalization_units :] = (
            example_mask_numpy(
                self.seed,
                np.where(has_memory, ids, 0),
                self.units - self.generalization_units,
                self.p_mem,
            )
            & has_memory[:, np.newaxis]
        )
        return on

    def _example_scale(self, inputs, example_ids):
        """The masks of the given examples, [batch, C]."""
        ids = checked_ids(self, inputs, example_ids, MEMORY_OFF)
        own = example_mask(
            self.seed, ids, self.units - self.generalization_units, self.p_mem
        )
        own &= (ids != MEMORY_OFF)[:, tf.newaxis]
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


def dropped_fraction(p_gen: float, p_mem: float) -> float:
    """The fraction of units that a tied layer switches off in training.

    A standard or sparse dropout of this rate is the fair control.
    """
    return (1 - p_gen) * (1 - p_mem)
