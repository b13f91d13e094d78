"""Durable: the weights that matter most to the forget set become 0.

Weights are ranked by the absolute value of the gradient of the loss, summed
over the forget set; the first `share` of all weights of kernels become 0.

Reference: "Durable" in the TinyMem benchmark of Sakarvadia et al. 2024
(2410.02159), which found localizing and zeroing better than training on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.gradients import GradientEngine, subset_gradients
from tfmemloc.removal.forgetting import removed, zero_largest
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


@dataclasses.dataclass(frozen=True)
class DurableConfig:
    """How many weights become 0.

    Attributes:
        share: of all weights of kernels; biases and normalization stay.
    """

    share: float = 0.01

    def __post_init__(self):
        check_fields(self)
        check_range("share", self.share, 0.0, 1.0)


def zero_weights(
    source: Source,
    examples: Examples,
    config: DurableConfig = DurableConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Zeroes the weights with the largest summed gradient of the forget set.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how many.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = zero_weights(model, examples, forget=ids)
        >>> result.method
        'Durable'
    """

    def zero(original, model, forgotten, retained):
        del original, retained
        _zero(model, forgotten, config.share)

    return removed(source, examples, forget, zero, method="Durable")


def _zero(model: keras.Model, forgotten: Examples, share: float) -> None:
    engine = GradientEngine(model)
    # Its subsets add up to the mean, which ranks weights as the sum does.
    parts = subset_gradients(engine, forgotten).values()
    sums = [sum(of_variable) for of_variable in zip(*parts, strict=True)]
    kernels = [
        (variable, np.abs(total))
        for variable, total in zip(engine.variables, sums, strict=True)
        if len(variable.shape) > 1
    ]
    zero_largest(kernels, share)
