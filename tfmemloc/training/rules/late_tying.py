"""First the given network alone, then its memory, at two step sizes.

    before the switch    all examples pass with their memory off
    after it             all with it on; the given network's gradients times 0.1

What generalizes is learned early and wrong labels late. So the given network
learns first, and then most of what is still to be learned goes to the memory,
which learns ten times as fast. The switch comes where the early part of the
training ends (`tfmemloc.training.early`).

Needs a network that was expanded by its memory (`tie_dropout(expand=...)`,
`ModelConfig.expand`), since carved units share their variables with the others,
and SGD, whose steps are as long as its gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import without_memory
from tfmemloc.data.examples import IDS, Examples
from tfmemloc.training.early import Early
from tfmemloc.training.rules import cross_entropy
from tfmemloc.training.tables import step_counter

# Fields of `TrainConfig` that are of this rule.
READS = ("early",)

_SLOW = 0.1


class LateTying:
    """The rule; counts the steps.

    Args:
        early: when the memory is off.
        memory: the variables of the memory, which keep their step size.

    Attributes:
        passes_without_memory: whether some examples do: early, all.
        variables: what a run saves to go on where it was killed.
    """

    passes_without_memory = True

    def __init__(self, early: Early, memory: Sequence[keras.Variable]):
        self.early = early
        self._memory = {id(variable) for variable in memory}
        self._step = step_counter()
        self.variables = [self._step, *early.variables]

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each example [B], and the logits."""
        self._step.assign_add(1)
        off = tf.fill(tf.shape(inputs[IDS]), self.early.has(self._step))
        return cross_entropy.rule(model, without_memory(inputs, off), label)

    def changed_gradients(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[keras.Variable],
    ) -> list[tf.Tensor]:
        """The gradients; small for the given network after the switch."""
        # The rule was called in this step, and has counted it.
        slow = tf.where(self.early.has(self._step), 1.0, _SLOW)
        return [
            gradient if id(variable) in self._memory else gradient * slow
            for gradient, variable in zip(gradients, variables, strict=True)
        ]


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> LateTying:
    """The rule for a training of this network on these examples.

    Raises:
        ValueError: the network is not expanded by memory, or the optimizer is
            not SGD.
    """
    if training.optimizer != "sgd":
        raise ValueError(
            'rule="late_tying" scales gradients, which another optimizer than '
            f'SGD undoes. Expected optimizer="sgd". Received: '
            f"optimizer={training.optimizer!r}."
        )
    memory = graph.memory_variables(model)
    if not memory:
        raise ValueError(
            f"Model '{model.name}' has no memory of its own variables, which "
            'rule="late_tying" trains at another step size. Expected a network '
            "made with ModelConfig(expand=...) or tie_dropout(model, "
            "expand=...)."
        )
    return LateTying(Early(model, examples, training), memory)
