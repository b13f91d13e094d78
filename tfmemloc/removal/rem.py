"""REM: forget, then learn the suspects again where they can be dropped.

The network is expanded by memorization units that begin at 0 (see
`tfmemloc.tie_dropout(expand=...)`), so that with their memory off it is the
given one. Then

1. with the memory off, the labels of the examples to forget are made less
   likely (the push of NPO), until at most `below` of them are predicted;
2. with the memory on, one epoch over all training examples: those to forget
   share one mask, all others have masks of their own. What the first step broke
   is mended, and what has to be known of the suspects goes where only they are;
3. the memorization units are dropped.

Reference: REM (ICLR 2026), with example-tied dropout as its masks. BatchNorm
keeps the statistics of the given network, as in all methods that train on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import data, tracing
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import predict_logits
from tfmemloc.graph.tying import tie_dropout, with_inference
from tfmemloc.removal.copies import make_adam
from tfmemloc.removal.forgetting import (
    ForgettingConfig,
    losses_of,
    removed,
    take_step,
)
from tfmemloc.removal.npo import preference
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source


@dataclasses.dataclass(frozen=True)
class REMConfig(ForgettingConfig):
    """How a network forgets and learns again.

    Attributes:
        epochs: over the examples to forget in the first step, at most. (The
            second step is one epoch over all.)
        beta: of NPO.
        below: share of the examples to forget whose label is still predicted
            when the first step ends.
        expand: memorization units for each unit of a place.
        p_mem: probability with which an example keeps one.
    """

    epochs: int = 20
    beta: float = 1.0
    below: float = 0.2
    expand: float = 1.0
    p_mem: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_range("beta", self.beta, 1e-6, None)
        check_range("below", self.below, 0.0, 1.0)
        check_range("expand", self.expand, 1e-6, None)
        check_range("p_mem", self.p_mem, 0.0, 1.0)


def forget_and_learn_again(
    source: Source,
    examples: Examples,
    config: REMConfig = REMConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Forgets, learns all anew with the suspects in one mask, and drops it.

    Args:
        source: a run or a functional model without tied layers; it is not
            changed.
        examples: those that it was trained on.
        config: how.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's, or the model has no
            place that can be expanded.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> ids = examples.of_subset("noisy").example_id
        >>> _, result = forget_and_learn_again(run, examples, forget=ids)
        >>> result.method
        'REM'
    """

    def change(original, model, forgotten, retained):
        del retained
        _push(original, model, forgotten, config)
        # It shares the weights of the model, which is what the drop leaves.
        expanded = tie_dropout(
            model, expand=config.expand, p_mem=config.p_mem, seed=config.seed
        )
        _learn_again(
            with_inference(expanded, "tied"),
            examples.train,
            forgotten.example_id,
            config,
        )

    return removed(source, examples, forget, change, method="REM")


def _push(original, model, forgotten: Examples, config: REMConfig) -> None:
    """Makes the labels to forget unlikely, in place."""
    variables = model.trainable_variables
    optimizer = make_adam(model, config.learning_rate)
    size = min(config.batch_size, len(forgotten))
    steps = data.steps_per_epoch(len(forgotten), size)
    batches = data.make_batches(
        forgotten, size, seed=config.seed, stop_step=config.epochs * steps
    )

    def step(inputs, label):
        before, _ = losses_of(original, inputs, label)

        def value():
            loss, _ = losses_of(model, inputs, label)
            return preference(loss - before, config.beta)

        take_step(value, optimizer, variables)

    function = tracing.function(step, input_signature=batches.element_spec)
    for number, batch in enumerate(batches):
        if number % steps == 0 and _known(model, forgotten) <= config.below:
            return
        function(*batch)


def _known(model, forgotten: Examples) -> float:
    logits = predict_logits(model, forgotten)
    return float(np.mean(logits.argmax(axis=1) == forgotten.label))


def _learn_again(tied, train: Examples, forget, config: REMConfig) -> None:
    """One epoch over all, in place."""
    optimizer = make_adam(tied, config.learning_rate)
    variables = tied.trainable_variables
    size = min(config.batch_size, len(train))
    shared = int(train.example_id.max()) + 1
    batches = data.make_batches(
        train,
        size,
        seed=config.seed,
        stop_step=data.steps_per_epoch(len(train), size),
    ).map(lambda inputs, label: (with_shared_id(inputs, forget, shared), label))

    def step(inputs, label):
        take_step(
            lambda: tf.reduce_mean(losses_of(tied, inputs, label)[0]),
            optimizer,
            variables,
        )

    function = tracing.function(step, input_signature=batches.element_spec)
    for batch in batches:
        function(*batch)


def with_shared_id(inputs, forget: np.ndarray, shared: int) -> dict:
    """A batch in which all examples to forget have one id."""
    ids = inputs["example_id"]
    one_of = tf.reduce_any(ids[:, tf.newaxis] == forget[tf.newaxis], axis=1)
    ids = tf.where(one_of, tf.constant(shared, ids.dtype), ids)
    return {**inputs, "example_id": ids}
