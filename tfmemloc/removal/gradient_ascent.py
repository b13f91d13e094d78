"""Gradient ascent and gradient difference.

    minimize  - E_F CE  +  w E_D CE

over the forget set F and the retained examples D; w = 0 is gradient ascent.
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
class GradientAscentConfig(ForgettingConfig):
    """How a network is trained to lose what it knows of the forget set.

    Attributes:
        epochs: passes over the retained examples.
        learning_rate: of Adam, constant.
        retain: weight of the retained examples; 0 is gradient ascent.
    """

    epochs: int = 3
    learning_rate: float = 1e-4
    retain: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_range("retain", self.retain, 0.0, None)


def ascend_gradient(
    source: Source,
    examples: Examples,
    config: GradientAscentConfig = GradientAscentConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Raises the loss of the examples to forget.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = ascend_gradient(model, examples, forget=ids)
        >>> result.method
        'gradient difference'
    """

    def objective(forgotten, retained):
        value = -tf.reduce_mean(forgotten.loss)
        if config.retain:
            value += config.retain * tf.reduce_mean(retained.loss)
        return value

    return train_to_forget(
        source,
        examples,
        forget,
        config,
        method="gradient difference" if config.retain else "gradient ascent",
        objectives=[objective],
    )
