"""Subnet and BalancedSubnet: a mask over frozen weights.

Each weight of a kernel has a score; in the forward pass the weights with the
smallest scores, a share of them, are 0. Only the scores are trained, straight
through the threshold:

    minimize  mean_D CE  -  mean_F CE      (balanced)

The result is the network with the mask applied, at most `share` of its weights
0. `balanced=False` finds the weights that F needs (minimizing mean_F CE over
the masks) and removes those.

Reference: BalancedSubnet in Sakarvadia et al. 2024 (2410.02159); scores
straight through the threshold: Ramanujan et al. 2020 (1911.13299).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import tracing
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import as_logits
from tfmemloc.graph.inputs import arranged
from tfmemloc.losses import cross_entropy
from tfmemloc.removal.forgetting import (
    ForgettingConfig,
    paired_batches,
    removed,
)
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


@dataclasses.dataclass(frozen=True)
class SubnetConfig(ForgettingConfig):
    """How the mask is searched for.

    Attributes:
        learning_rate: of SGD on the scores.
        share: of the weights of each kernel that become 0.
        balanced: search on forgotten and retained examples together.
    """

    learning_rate: float = 0.1
    share: float = 0.05
    balanced: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_range("share", self.share, 0.0, 0.99)


def mask_weights(
    source: Source,
    examples: Examples,
    config: SubnetConfig = SubnetConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Zeroes the weights that a trained mask leaves out.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = mask_weights(
        ...     model, examples, SubnetConfig(epochs=1), forget=ids
        ... )
        >>> result.method
        'BalancedSubnet'
    """

    def mask(original, model, forgotten, retained):
        del original
        _mask(model, forgotten, retained, config)

    name = "BalancedSubnet" if config.balanced else "Subnet"
    return removed(source, examples, forget, mask, method=name)


def _mask(model, forgotten, retained, config: SubnetConfig) -> None:
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1]
    scores = _trained_scores(model, kernels, forgotten, retained, config)
    for kernel, score in zip(kernels, scores, strict=True):
        kept = _kept(score, config.share).numpy()
        if not config.balanced:
            # The weights with the largest scores are those that F needs.
            kept = 1 - _kept(score, 1 - config.share).numpy()
        kernel.assign(kernel.numpy() * kept)


def _trained_scores(model, kernels, forgotten, retained, config):
    """The score of each weight after training."""
    rng = np.random.default_rng(config.seed)
    scores = [
        tf.Variable(rng.uniform(0.9, 1.1, v.shape).astype(np.float32))
        for v in kernels
    ]
    batches = paired_batches(forgotten, retained, config)
    place = {id(v): k for k, v in enumerate(kernels)}
    fixed = [v.value for v in model.non_trainable_variables]

    def loss(inputs, label, masks):
        values = [
            v.value * masks[place[id(v)]] if id(v) in place else v.value
            for v in model.trainable_variables
        ]
        outputs, _ = model.stateless_call(
            values, fixed, arranged(model, inputs), training=False
        )
        logits = as_logits(model, outputs)
        return tf.reduce_mean(cross_entropy(label, logits))

    def step(batch):
        of_forgotten, of_retained = batch
        with tf.GradientTape() as tape:
            masks = [_straight_through(s, config.share) for s in scores]
            if config.balanced:
                value = loss(*of_retained, masks) - loss(*of_forgotten, masks)
            else:
                value = loss(*of_forgotten, masks)
        gradients = tape.gradient(value, scores)
        for score, gradient in zip(scores, gradients, strict=True):
            score.assign_sub(config.learning_rate * gradient)

    function = tracing.function(step, input_signature=[batches.element_spec])
    for batch in batches:
        function(batch)
    return scores


def _kept(score: tf.Tensor, share: float) -> tf.Tensor:
    """1 where a score is among the largest, a share of the others left out."""
    flat = tf.sort(tf.reshape(score, [-1]))
    count = int(share * flat.shape[0])
    if not count:
        return tf.ones_like(score)
    return tf.cast(score > flat[count - 1], score.dtype)


def _straight_through(score: tf.Tensor, share: float) -> tf.Tensor:
    """The mask, whose gradient is that of the scores."""
    score = tf.convert_to_tensor(score)
    return score + tf.stop_gradient(_kept(score, share) - score)
