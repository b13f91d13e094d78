"""How durable a removal is: does what was forgotten come back?

Published attacks bring back a third of what "unlearned" networks were said to
have forgotten, by steps that have nothing to do with the forgotten examples.
Here a network is

- trained on for a few steps, on the other training examples with right labels
  (Adam; BatchNorm's statistics as they are);
- rounded: each trainable weight to one of 2**bits - 1 levels, evenly spaced
  over +- the largest of its tensor;
- pruned: of each kernel the smallest weights, a given share, become 0;

and the share of the forgotten examples that it gets right *as they were
labelled* is measured again. The same for the network before the removal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import data, subsets, tracing
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import Predictor, evaluate
from tfmemloc.fields import check_fields
from tfmemloc.gradients.calls import dense_gradients
from tfmemloc.graph import swapped_weights
from tfmemloc.removal.copies import make_adam, own_copy
from tfmemloc.removal.forgetting import losses_of
from tfmemloc.result import Result, or_none
from tfmemloc.snapshots import Source, model_of


@dataclasses.dataclass(frozen=True)
class DurabilityConfig:
    """What is tried.

    Attributes:
        steps: numbers of training steps.
        learning_rate: of these steps, with Adam.
        batch_size: examples in a step.
        bits: to which weights are rounded.
        pruned: shares of each kernel's weights.
        seed: of the order of the examples.
    """

    steps: tuple[int, ...] = (1, 10, 100)
    learning_rate: float = 1e-4
    batch_size: int = 128
    bits: tuple[int, ...] = (8, 4)
    pruned: tuple[float, ...] = (0.1, 0.2)
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        for steps in self.steps:
            check_range("steps", steps, 1, None)
        for bits in self.bits:
            check_range("bits", bits, 2, 16)
        for share in self.pruned:
            check_range("pruned", share, 0.0, 1.0)
        check_range("learning_rate", self.learning_rate, 0.0, None)
        check_range("batch_size", self.batch_size, 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Durability(Result):
    """The memory of two networks under attacks that do not aim at it."""

    title: ClassVar[str] = "Does what was forgotten come back?"

    subset: str  # Of the forgotten examples.
    attacks: tuple[str, ...]  # A names; the first is none.
    before: np.ndarray  # [A] accuracy of the forgotten labels, in [0, 1].
    after: np.ndarray  # [A] of the network after the removal.
    before_test: np.ndarray  # [A] accuracy on test examples; NaN if none.
    after_test: np.ndarray  # [A].

    def rows(self) -> list[dict[str, Any]]:
        """A row for each attack."""
        return [
            {
                "attack": attack,
                f"before: {self.subset}": float(self.before[a]),
                f"after: {self.subset}": float(self.after[a]),
                "before: test": or_none(self.before_test[a]),
                "after: test": or_none(self.after_test[a]),
            }
            for a, attack in enumerate(self.attacks)
        ]

    def sentence(self) -> str:
        """The attack that brings most back."""
        worst = int(np.argmax(self.after))
        text = (
            f"After the removal the network gets {self.after[0]:.1%} of the "
            f"{self.subset} examples right as they were labelled "
            f"(before: {self.before[0]:.1%}). "
        )
        if worst == 0:
            return f"{text}No attack brings more back."
        return (
            f"{text}Most comes back by {self.attacks[worst]}: "
            f"{self.after[worst]:.1%}."
        )

    def key_numbers(self) -> dict[str, float]:
        """What is known after the removal, by attack."""
        return {
            f"after {attack}": float(value)
            for attack, value in zip(self.attacks, self.after, strict=True)
        }


def audit_durability(
    before: Source,
    after: Source,
    examples: Examples,
    config: DurabilityConfig = DurabilityConfig(),
) -> Durability:
    """Attacks a network before and after a removal in the same way.

    Args:
        before: a run or a functional model; it is not changed.
        after: the same network after the removal.
        examples: those that it was trained on, some of them `noisy` or
            `atypical`, which were to be forgotten.
        config: what is tried.

    Raises:
        ValueError: no subset is to be forgotten, or no other is trained on.

    Example:
        >>> edited, _ = remove_memory(
        ...     model, examples, CurvatureConfig(keep=0.9, refit_epochs=0)
        ... )
        >>> durable = audit_durability(
        ...     model, edited, examples, DurabilityConfig(steps=(1,))
        ... )
        >>> durable.attacks[:2]
        ('none', 'rounding to 8 bits')
    """
    forgotten = examples.memorized
    others = [
        name
        for name in subsets.training(examples.subsets)
        if name not in subsets.MEMORIZED
    ]
    if forgotten is None or not others:
        raise ValueError(
            f"{examples.name} expected a subset of forgotten examples, "
            f"{' or '.join(subsets.MEMORIZED)}, and others that are trained "
            f"on. Received subsets: {', '.join(examples.subsets)}."
        )
    measured = examples.take(np.isin(examples.subset, [forgotten, "test"]))
    training = examples.take(np.isin(examples.subset, others))
    sides = [
        list(_attacked(model_of(source, examples), training, measured, config))
        for source in (before, after)
    ]
    columns = {}
    for name, side in zip(("before", "after"), sides, strict=True):
        columns[name] = np.array([row[forgotten] for _, row in side])
        columns[f"{name}_test"] = np.array(
            [row.get("test", float("nan")) for _, row in side]
        )
    return Durability(
        subset=forgotten,
        attacks=tuple(attack for attack, _ in sides[0]),
        **columns,
    )


def _attacked(
    model: keras.Model, training: Examples, measured: Examples, config
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each attack on a network, and its accuracies afterwards."""
    model = own_copy(model)
    predict = Predictor(model)
    weights = [v.numpy() for v in model.trainable_variables]

    def accuracies():
        metrics = evaluate(predict, measured)
        return dict(zip(metrics.subsets, metrics.accuracy, strict=True))

    yield "none", accuracies()
    for bits in config.bits:
        values = [rounded(weight, bits) for weight in weights]
        with swapped_weights(model.trainable_variables, values):
            rounded_to = accuracies()
        yield f"rounding to {bits} bits", rounded_to
    for share in config.pruned:
        values = [pruned(weight, share) for weight in weights]
        with swapped_weights(model.trainable_variables, values):
            without = accuracies()
        yield f"pruning {share:.0%}", without
    for done in _trained(model, training, config):
        yield f"{done} steps of training", accuracies()


def rounded(weight: np.ndarray, bits: int) -> np.ndarray:
    """Each number to the nearest of the levels of so many bits."""
    largest = np.abs(weight).max()
    if largest == 0:
        return weight
    step = largest / (2 ** (bits - 1) - 1)
    return (np.round(weight / step) * step).astype(weight.dtype)


def pruned(weight: np.ndarray, share: float) -> np.ndarray:
    """A kernel without its smallest numbers; vectors stay as they are."""
    if weight.ndim < 2:
        return weight
    count = int(share * weight.size)
    left = weight.copy().ravel()
    left[np.argsort(np.abs(left), kind="stable")[:count]] = 0
    return left.reshape(weight.shape)


def _trained(
    model: keras.Model, training: Examples, config: DurabilityConfig
) -> Iterator[int]:
    """Trains in place; gives the steps done at each of the asked numbers."""
    wanted: Sequence[int] = sorted(config.steps)
    if not wanted:
        return
    variables = model.trainable_variables
    optimizer = make_adam(model, config.learning_rate)
    batches = data.make_batches(
        training,
        min(config.batch_size, len(training)),
        seed=config.seed,
        stop_step=wanted[-1],
    )

    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(losses_of(model, *batch)[0])
            loss = optimizer.scale_loss(loss)
        optimizer.apply(dense_gradients(tape, loss, variables), variables)

    function = tracing.function(step, input_signature=[batches.element_spec])
    for done, batch in enumerate(batches, start=1):
        function(batch)
        if done in wanted:
            yield done
