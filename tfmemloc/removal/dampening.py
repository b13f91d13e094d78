"""Selective synaptic dampening (SSD).

I_F and I_D are the diagonals of the empirical Fisher matrix, the mean squared
per-example gradient of each weight, over the forget set and over all training
examples. SSD multiplies each weight with I_F > alpha I_D by
min(lambda I_D / I_F, 1). No training.

Reference: Foster et al. 2024 (2308.07707).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.streaming import MEMORY_BUDGET, stream
from tfmemloc.removal.forgetting import removed
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


@dataclasses.dataclass(frozen=True)
class DampeningConfig:
    """Which weights are dampened, and how much.

    Attributes:
        alpha: a weight is dampened where I_F is over alpha times I_D.
        dampening: lambda of the formula.
    """

    alpha: float = 5.0
    dampening: float = 1.0

    def __post_init__(self):
        check_fields(self)
        check_range("alpha", self.alpha, 0.0, None)
        check_range("dampening", self.dampening, 0.0, None)


def dampen_weights(
    source: Source,
    examples: Examples,
    config: DampeningConfig = DampeningConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Dampens the weights that matter more to F than to all examples.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = dampen_weights(model, examples, forget=ids)
        >>> result.method
        'SSD'
    """

    def dampen(original, model, forgotten, retained):
        del original, retained  # I_D is over all training examples.
        _dampen(model, forgotten, examples.train, config)

    return removed(source, examples, forget, dampen, method="SSD")


def _dampen(model, forgotten, train, config: DampeningConfig) -> None:
    engine = GradientEngine(model)
    of_forgotten = squared_gradients(engine, forgotten)
    of_all = squared_gradients(engine, train)
    for variable, one, other in zip(
        engine.variables, of_forgotten, of_all, strict=True
    ):
        factor = np.minimum(
            config.dampening * other / np.maximum(one, 1e-30), 1
        )
        is_specific = one > config.alpha * other
        variable.assign(np.where(is_specific, factor, 1.0) * variable.numpy())


def squared_gradients(
    engine: GradientEngine,
    examples: Examples,
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> list[np.ndarray]:
    """The mean squared per-example gradient of each weight, by variable."""
    totals = None
    for chunk in stream(
        engine, examples, memory_budget, "importance", quantity="squares"
    ):
        sums = [s.numpy() for s in engine.squares(chunk.inputs, chunk.label)]
        totals = (
            sums
            if totals is None
            else [a + b for a, b in zip(totals, sums, strict=True)]
        )
    return [total / len(examples) for total in totals]
