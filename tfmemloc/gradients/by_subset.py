"""The aggregate gradient of each subset of the examples."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfmemloc import graph, losses
from tfmemloc.data.chunks import chunk_at
from tfmemloc.data.examples import Examples
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.streaming import MEMORY_BUDGET, check_finite, stream
from tfmemloc.subsets import NOT_TRAINED_ON


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetAccount:
    """What one pass over the examples tells of their gradients."""

    subsets: tuple[str, ...]  # S.
    norms_squared: np.ndarray  # [N, V] of per-example gradients.
    aggregate: dict[str, list[np.ndarray]]  # Subset -> V weighted gradients.
    accuracy: np.ndarray  # [S] in [0, 1], of the labels trained on.


def account_subsets(
    engine: GradientEngine,
    examples: Examples,
    *,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> SubsetAccount:
    """Per-example norms and the aggregate gradient of each subset, in one pass.

    The weights are the paper's: the aggregate of a training subset is the sum
    over its examples divided by the number of *all* training examples, so that
    the training subsets add up to the gradient of the mean training loss. Any
    other subset is divided by its own size. BatchNorm has frozen statistics.

    Args:
        engine: of the model.
        examples: N examples.
        memory_budget: see `per_example_norms`.
        progress: show a progress bar.
    """
    subsets = examples.subsets
    squared = np.zeros((len(examples), len(engine.variables)), np.float32)
    aggregate, accuracy = {}, []
    # A subset at a time: the sum over a chunk then belongs to one subset.
    for subset in subsets:
        places = np.flatnonzero(examples.subset == subset)
        total = [np.zeros(v.shape, np.float64) for v in engine.variables]
        right = 0.0
        for chunk in stream(
            engine, examples.take(places), memory_budget, subset, progress
        ):
            norms, gradients, logits = engine.account(chunk.inputs, chunk.label)
            norms, here = norms.numpy(), places[chunk.places]
            check_finite(norms, examples.example_id[here], examples.name)
            squared[here] = norms
            right += _right(chunk.label, logits.numpy())
            for so_far, gradient in zip(total, gradients, strict=True):
                so_far += gradient.numpy()
        weight = len(places)
        if subset not in NOT_TRAINED_ON:
            weight = np.sum(examples.is_trained_on)
        aggregate[subset] = [gradient / weight for gradient in total]
        accuracy.append(right / len(places))
    return SubsetAccount(subsets, squared, aggregate, np.array(accuracy))


def _right(label: np.ndarray, outputs: np.ndarray) -> float:
    """How many predictions are right; NaN where outputs are no logits.

    A loss of one's own may be of other outputs.
    """
    is_logits = outputs.ndim == label.ndim + 1 and outputs.shape[-1] > 1
    return losses.correct(label, outputs).sum() if is_logits else np.nan


def subset_gradients(
    engine: GradientEngine,
    examples: Examples,
    *,
    batch_statistics: bool = False,
    batch_size: int = 512,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
) -> dict[str, list[np.ndarray]]:
    """The aggregate gradient of each subset, weighted as in the paper.

    See `account_subsets` for the weights: training subsets add up to the
    gradient of the mean training loss.

    Args:
        engine: of the model; its loss and model are used.
        examples: N examples.
        batch_statistics: False freezes BatchNorm's statistics. True takes the
            coupled gradient of a training step: batches of all training
            subsets together, in a random order, each normalized by its own
            statistics; the moving statistics are left as they were. Each subset
            that is not trained on has batches of its own.
        batch_size: examples in a batch, with `batch_statistics`.
        seed: of the order of the examples, with `batch_statistics`.
        memory_budget: see `per_example_norms`; without `batch_statistics`.

    Returns:
        subset -> V arrays, one for each of the engine's variables.

    Example:
        >>> sorted(subset_gradients(GradientEngine(model), examples))
        ['clean', 'noisy', 'test']
    """
    if not batch_statistics:
        return account_subsets(
            engine, examples, memory_budget=memory_budget
        ).aggregate
    result: dict[str, list[np.ndarray]] = {}
    parts = [examples.train] if examples.is_trained_on.any() else []
    parts += [
        examples.of_subset(name)
        for name in examples.subsets
        if name in NOT_TRAINED_ON
    ]
    for part in parts:
        result |= _coupled_gradients(engine, part, batch_size, seed)
    return result


def _coupled_gradients(engine, examples, batch_size, seed):
    """Aggregates under batch statistics, of the subsets of `examples`."""
    subsets = examples.subsets
    order = np.random.default_rng(seed).permutation(len(examples))
    totals = [[np.zeros(v.shape) for v in engine.variables] for _ in subsets]
    moving = engine.model.non_trainable_variables
    with graph.swapped_weights(moving, [v.numpy() for v in moving]):
        for start in range(0, len(examples), batch_size):
            part = chunk_at(examples, order[start : start + batch_size])
            subset = examples.subset[part.places]
            member = np.stack([subset == s for s in subsets], axis=1)
            sums = engine.subset_sums(
                part.inputs, part.label, member.astype(np.float32)
            )
            for total, found in zip(totals, sums, strict=True):
                for so_far, gradient in zip(total, found, strict=True):
                    so_far += gradient.numpy()
    return {
        subset: [gradient / len(examples) for gradient in total]
        for subset, total in zip(subsets, totals, strict=True)
    }
