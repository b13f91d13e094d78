"""Durable: the weights that matter most to the forget set become 0.

Weights are ranked by the absolute value of the gradient of the loss, summed
over the forget set; the first `share` of all weights of kernels become 0.

Reference: "Durable" in the TinyMem benchmark of Sakarvadia et al. 2024
(2410.02159), which found localizing and zeroing better than training on.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc.configs import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.streaming import MEMORY_BUDGET, stream
from tfmemloc.removal.copies import check_examples, own_copy
from tfmemloc.removal.forgetting import removal, split
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source, model_of


@dataclasses.dataclass(frozen=True)
class DurableConfig:
    """How many weights become 0.

    Attributes:
        share: of all weights of kernels; biases and normalization stay.
    """

    share: float = 0.01

    def __post_init__(self):
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
    original = model_of(source, examples)
    check_examples(original, examples)
    forgotten, _ = split(examples, forget)
    started = time.perf_counter()
    model = own_copy(original)
    engine = GradientEngine(model)
    sums = [np.zeros(v.shape, np.float32) for v in engine.variables]
    for chunk in stream(engine, forgotten, MEMORY_BUDGET, "gradients"):
        _, parts, _ = engine.account(chunk.inputs, chunk.label)
        sums = [a + b.numpy() for a, b in zip(sums, parts, strict=True)]
    kernels = [
        (variable, np.abs(total))
        for variable, total in zip(engine.variables, sums, strict=True)
        if len(variable.shape) > 1
    ]
    ranked = np.sort(np.concatenate([total.ravel() for _, total in kernels]))
    count = int(config.share * len(ranked))
    if count:
        for variable, total in kernels:
            variable.assign(
                np.where(total >= ranked[-count], 0, variable.numpy())
            )
    seconds = time.perf_counter() - started
    return model, removal(original, model, examples, "Durable", seconds)
