"""First the given network alone, then its memory, at two step sizes.

    before the switch    all examples pass with their memory off
    after it             all with it on; the given network's gradients times 0.1

What generalizes is learned early and wrong labels late. So the given network
learns first, and then most of what is still to be learned goes to the memory,
which learns ten times as fast. `TrainConfig.early` says when the switch comes.

Needs a network that was expanded by its memory (`tie_dropout(expand=...)`,
`ModelConfig.expand`), since carved units share their variables with the others,
and SGD, whose steps are as long as its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import steps_per_epoch
from tfmemloc.data.examples import IDS, Examples
from tfmemloc.layers.tied_dropout import MEMORY_OFF
from tfmemloc.training.rules import cross_entropy
from tfmemloc.training.tables import step_counter

_SLOW = 0.1


class LateTying:
    """The rule; counts the steps.

    Args:
        switch: the step before which the memory is off.

    Attributes:
        variables: what a run saves to go on where it was killed.
    """

    def __init__(self, switch: int):
        self._switch = switch
        self._step = step_counter()
        self.variables = [self._step]

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each example [B], and the logits."""
        ids = inputs[IDS]
        off = tf.fill(tf.shape(ids), self._step < self._switch)
        self._step.assign_add(1)
        fed = {**inputs, IDS: tf.where(off, MEMORY_OFF, ids)}
        return cross_entropy.rule(model, fed, label)

    def gradient_transform(
        self, model: keras.Model, variables: Sequence[keras.Variable]
    ) -> Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]:
        """Makes the gradients of the given network small after the switch.

        Raises:
            ValueError: the model is not expanded by memory.
        """
        memory = {id(v) for v in graph.memory_variables(model)}
        if not memory:
            raise ValueError(
                f"Model '{model.name}' has no memory of its own variables, "
                "which this rule trains at another step size. Expected a "
                "network made with ModelConfig(expand=...) or "
                "tie_dropout(model, expand=...)."
            )
        is_memory = [id(variable) in memory for variable in variables]

        def transform(gradients):
            # The rule was called in this step, and has counted it.
            slow = tf.where(self._step <= self._switch, 1.0, _SLOW)
            return [
                gradient if mine else gradient * slow
                for gradient, mine in zip(gradients, is_memory, strict=True)
            ]

        return transform


def make(examples: Examples, training: TrainConfig) -> LateTying:
    """The rule for a training on these examples.

    Raises:
        ValueError: the optimizer is not SGD.
    """
    if training.optimizer != "sgd":
        raise ValueError(
            'rule="late_tying" scales gradients, which another optimizer than '
            f'SGD undoes. Expected optimizer="sgd". Received: '
            f"optimizer={training.optimizer!r}."
        )
    steps = steps_per_epoch(len(examples), training.batch_size)
    return LateTying(round(training.early * steps * training.epochs))
