"""Removals that are told what to forget: their sets, and how they train on.

A forget set F is a set of ids of training examples; all other training examples
are retained. Methods that train on take steps on a batch of each at once. They
call the network with BatchNorm's moving statistics (`training=False`): a batch
of forgotten examples has the statistics of no data that the network will see.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import data, tracing
from tfmemloc.checks import as_ids, check_range
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import as_logits
from tfmemloc.fields import check_fields
from tfmemloc.gradients.calls import dense_gradients
from tfmemloc.graph.inputs import arranged
from tfmemloc.losses import cross_entropy
from tfmemloc.removal.copies import check_examples, make_adam, own_copy
from tfmemloc.removal.outcome import Removal, measures
from tfmemloc.snapshots import Source, model_of


@dataclasses.dataclass(frozen=True)
class ForgettingConfig:
    """How a network is trained on to forget.

    Attributes:
        epochs: passes over the retained examples.
        learning_rate: of Adam, constant.
        batch_size: retained examples in a step, and forgotten ones.
        seed: of the order of the examples.
    """

    epochs: int = 5
    learning_rate: float = 3e-4
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_range("epochs", self.epochs, 1, None)
        check_range("learning_rate", self.learning_rate, 0.0, None)
        check_range("batch_size", self.batch_size, 1, None)


@dataclasses.dataclass(frozen=True)
class Part:
    """One side of a step, seen by the network and by that before.

    Attributes:
        label: [B] as given.
        loss: [B] cross-entropy of these labels.
        logits: [B, classes].
        loss_before: [B] of the network before the removal.
        logits_before: [B, classes].
    """

    label: tf.Tensor
    loss: tf.Tensor
    logits: tf.Tensor
    loss_before: tf.Tensor
    logits_before: tf.Tensor


# (forgotten, retained) -> what is minimized
Objective = Callable[[Part, Part], tf.Tensor]
# (network before, network to be changed, forgotten, retained)
Change = Callable[[keras.Model, keras.Model, Examples, Examples], None]


def split(
    examples: Examples, forget: Sequence[int]
) -> tuple[Examples, Examples]:
    """The training examples to forget, and those to retain.

    Raises:
        ValueError: an id is not a training example's, or one side is empty.
    """
    train = examples.train
    ids = np.unique(as_ids(examples.name, forget))
    forgotten = train.of_ids(ids)
    retained = train.take(~np.isin(train.example_id, ids))
    if not len(forgotten) or not len(retained):
        raise ValueError(
            f"Expected ids of some of the {len(train)} training examples of "
            f"{examples.name}, and not of all. Received: {len(ids)} ids."
        )
    return forgotten, retained


def train_to_forget(
    source: Source,
    examples: Examples,
    forget: Sequence[int],
    config: ForgettingConfig,
    *,
    method: str,
    objectives: Sequence[Objective],
) -> tuple[keras.Model, Removal]:
    """Trains a copy of a network on; each step minimizes all objectives.

    Args:
        source: a run or a model; it is not changed.
        examples: those that it was trained on.
        forget: ids.
        config: how.
        method: its name in tables.
        objectives: minimized in turn in each step.
    """

    def change(original, model, forgotten, retained):
        descend(original, model, forgotten, retained, objectives, config)

    return removed(source, examples, forget, change, method=method)


def descend(
    original: keras.Model,
    model: keras.Model,
    forgotten: Examples,
    retained: Examples,
    objectives: Sequence[Objective],
    config: ForgettingConfig,
    entries: Sequence[np.ndarray] | None = None,
) -> None:
    """Trains a network on, in place; each step minimizes all objectives.

    Args:
        original: the network before.
        model: the one that is changed.
        forgotten: examples to forget.
        retained: the others.
        objectives: minimized in turn in each step.
        config: how.
        entries: for each trainable variable, 1 where it may change, else 0;
            None trains all.
    """
    batches = paired_batches(forgotten, retained, config)
    variables = model.trainable_variables
    optimizers = [make_adam(model, config.learning_rate) for _ in objectives]

    def step(batch):
        before = [losses_of(original, *part) for part in batch]

        def value(objective):
            parts = [
                Part(part[1], *losses_of(model, *part), *known)
                for part, known in zip(batch, before, strict=True)
            ]
            return objective(*parts)

        for objective, optimizer in zip(objectives, optimizers, strict=True):
            take_step(
                lambda objective=objective: value(objective),
                optimizer,
                variables,
                entries,
            )

    function = tracing.function(step, input_signature=[batches.element_spec])
    for batch in batches:
        function(batch)


def removed(
    source: Source,
    examples: Examples,
    forget: Sequence[int],
    change: Change,
    *,
    method: str,
) -> tuple[keras.Model, Removal]:
    """Changes a copy of a network, and measures what became of it.

    Args:
        source: a run or a model; it is not changed.
        examples: those that it was trained on.
        forget: ids.
        change: does it, in place.
        method: its name in tables.
    """
    original = model_of(source, examples)
    check_examples(original, examples)
    forgotten, retained = split(examples, forget)
    started = time.perf_counter()
    model = own_copy(original)
    change(original, model, forgotten, retained)
    check_weights(model, method)
    seconds = time.perf_counter() - started
    return model, removal(original, model, examples, method, seconds)


def paired_batches(
    forgotten: Examples, retained: Examples, config: ForgettingConfig
) -> tf.data.Dataset:
    """(batch of the forgotten, batch of the retained) for all epochs."""
    steps = config.epochs * data.steps_per_epoch(
        len(retained), config.batch_size
    )
    return tf.data.Dataset.zip(
        tuple(
            data.make_batches(
                part,
                min(config.batch_size, len(part)),
                seed=config.seed,
                stop_step=steps,
            )
            for part in (forgotten, retained)
        )
    )


def check_weights(model: keras.Model, method: str) -> None:
    """Refuses a network whose weights are NaN or infinite.

    Raises:
        FloatingPointError: says what to do.
    """
    if not all(np.isfinite(weight).all() for weight in model.get_weights()):
        raise FloatingPointError(
            f"{method}: the weights are not finite any more. Expected a lower "
            "learning rate, or fewer epochs."
        )


def removal(original, model, examples, method: str, seconds: float) -> Removal:
    """What a method did, measured."""
    return Removal(
        method=method, seconds=seconds, **measures(original, model, examples)
    )


def losses_of(model: keras.Model, inputs, label) -> tuple[tf.Tensor, tf.Tensor]:
    """The cross-entropy [B] and the logits of a batch; moving statistics."""
    outputs = model(arranged(model, inputs), training=False)
    logits = tf.cast(as_logits(model, outputs), tf.float32)
    return cross_entropy(label, logits), logits


def take_step(
    value: Callable[[], tf.Tensor],
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    entries: Sequence[np.ndarray] | None = None,
) -> None:
    """One step that makes a value smaller.

    Args:
        value: gives it.
        optimizer: of Adam; it moves no entry whose gradient was always 0.
        variables: those that it was built for.
        entries: see `descend`.
    """
    with tf.GradientTape() as tape:
        scaled = optimizer.scale_loss(value())
    gradients = dense_gradients(tape, scaled, variables)
    if entries is not None:
        gradients = [
            gradient * tf.cast(which, gradient.dtype)
            for gradient, which in zip(gradients, entries, strict=True)
        ]
    optimizer.apply(gradients, variables)


def zero_largest(
    scores: Sequence[tuple[keras.Variable, np.ndarray]], share: float
) -> None:
    """Zeroes the weights with the largest scores, in place.

    Args:
        scores: kernels, and the score of each weight.
        share: of all weights together.
    """
    ranked = np.sort(np.concatenate([score.ravel() for _, score in scores]))
    count = int(share * len(ranked))
    if count:
        for variable, score in scores:
            variable.assign(
                np.where(score >= ranked[-count], 0, variable.numpy())
            )
