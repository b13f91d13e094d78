"""Negative preference optimization.

    minimize  - (2 / b) E_F log sigmoid(b (CE - CE_before))  +  w E_D CE

A gradient ascent whose push on an example ends as it is forgotten.

Reference: Zhang et al. 2024 (2404.05868).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.removal.forgetting import ForgettingConfig, train_to_forget
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


@dataclasses.dataclass(frozen=True)
class NPOConfig(ForgettingConfig):
    """How a network is trained to prefer other labels.

    Attributes:
        beta: b of the formula; the larger, the sooner the push ends.
        retain: w, the weight of the retained examples.
    """

    beta: float = 1.0
    retain: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_range("beta", self.beta, 1e-6, None)
        check_range("retain", self.retain, 0.0, None)


def optimize_negative_preference(
    source: Source,
    examples: Examples,
    config: NPOConfig = NPOConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Makes the labels of the examples to forget less likely than before.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = optimize_negative_preference(
        ...     model, examples, forget=ids
        ... )
        >>> result.method
        'NPO'
    """

    def objective(forgotten, retained):
        value = preference(forgotten.loss - forgotten.loss_before, config.beta)
        return value + config.retain * tf.reduce_mean(retained.loss)

    return train_to_forget(
        source,
        examples,
        forget,
        config,
        method="NPO",
        objectives=[objective],
    )


def preference(rise: tf.Tensor, beta: float) -> tf.Tensor:
    """The first term of the formula, of the rise of each example's loss."""
    # - log sigmoid(x) = softplus(-x)
    return 2 / beta * tf.reduce_mean(tf.nn.softplus(-beta * rise))
