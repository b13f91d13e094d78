"""Second order (OBS): the weights that the forget set holds become 0.

Of a weight w, how much the loss on the forget set is expected to rise when it
alone becomes 0 and all others of its block make up for it:

    w**2 / (2 [F^-1]_ww),    F = damping I + (1/m) sum_i g_i g_i'

F is the empirical Fisher information of m gradients g_i of single examples to
forget, within blocks of weights that lie side by side in a kernel. The first
`share` of all weights of kernels, by that score, become 0.

Reference: optimal brain surgeon (Hassibi and Stork 1993) with the block-wise
Fisher of Kurtic et al. 2022 (2203.07259), in the TinyMem benchmark of
Sakarvadia et al. 2024 (2410.02159). They update the inverse gradient by
gradient; here the sum is made first and inverted once, which is the same
matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.data.labels import drawn_ids
from tfmemloc.fields import check_fields
from tfmemloc.gradients import GradientEngine
from tfmemloc.gradients.streaming import MEMORY_BUDGET, stream
from tfmemloc.layers import masks
from tfmemloc.removal.forgetting import removed, zero_largest
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source

_INVERTED = 4096  # Blocks at once.


@dataclasses.dataclass(frozen=True)
class SecondOrderConfig:
    """How many weights become 0, and of what the Fisher information is made.

    Attributes:
        share: of all weights of kernels; biases and normalization stay.
        block: weights in a block. Memory: `block` numbers for each weight.
        damping: added to the diagonal.
        gradients: m at most; where there are more examples to forget, these
            are drawn by `seed`.
        seed: of the draw.
    """

    share: float = 0.01
    block: int = 50
    damping: float = 1e-7
    gradients: int = 512
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_range("share", self.share, 0.0, 1.0)
        check_range("block", self.block, 1, None)
        check_range("damping", self.damping, 1e-12, None)
        check_range("gradients", self.gradients, 1, None)


def zero_held_weights(
    source: Source,
    examples: Examples,
    config: SecondOrderConfig = SecondOrderConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Zeroes the weights without which the forget set is expected to suffer.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: how many.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's.

    Example:
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = zero_held_weights(model, examples, forget=ids)
        >>> result.method
        'second order'
    """

    def zero(original, model, forgotten, retained):
        del original, retained
        stream_seed = masks.fold_seed(config.seed, "second order")
        ids = drawn_ids(forgotten.example_id, config.gradients, stream_seed)
        zero_largest(
            expected_rise(model, forgotten.of_ids(ids), config), config.share
        )

    return removed(source, examples, forget, zero, method="second order")


def expected_rise(
    model: keras.Model, forgotten: Examples, config: SecondOrderConfig
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Each kernel, and the score of the module's text for each weight of it."""
    engine = GradientEngine(model)
    kernels = [k for k, v in enumerate(engine.variables) if len(v.shape) > 1]
    sums = [0.0] * len(kernels)
    for chunk in stream(
        engine, forgotten, MEMORY_BUDGET, "Fisher", quantity="squares"
    ):
        gradients = engine.gradients(chunk.inputs, chunk.label)
        for n, k in enumerate(kernels):
            # [blocks, B, block]
            parts = _blocks(gradients[k].numpy(), config.block)
            sums[n] = sums[n] + parts.swapaxes(1, 2) @ parts
    found = []
    for n, k in enumerate(kernels):
        variable = engine.variables[k]
        inverse = _inverse_diagonal(sums[n] / len(forgotten), config.damping)
        diagonal = inverse.ravel()[: int(np.prod(variable.shape))]
        score = variable.numpy() ** 2 / (2 * diagonal.reshape(variable.shape))
        found.append((variable, score))
    return found


def _blocks(gradient: np.ndarray, size: int) -> np.ndarray:
    """[B, *shape of a kernel] -> [blocks, B, size]; zeros fill the last."""
    flat = gradient.reshape(len(gradient), -1)
    flat = np.pad(flat, [(0, 0), (0, -flat.shape[1] % size)])
    return flat.reshape(len(flat), -1, size).swapaxes(0, 1)


def _inverse_diagonal(fisher: np.ndarray, damping: float) -> np.ndarray:
    """[blocks, size] of the inverse of each damped block."""
    damped = damping * np.eye(fisher.shape[-1])
    return np.concatenate(
        [
            np.diagonal(
                np.linalg.inv(part.astype(np.float64) + damped),
                axis1=1,
                axis2=2,
            )
            for part in np.split(
                fisher, range(_INVERTED, len(fisher), _INVERTED)
            )
        ]
    )
