"""The early part of a training, in which wrong labels are hardly learned yet.

Some rules treat it apart. It ends after the share `TrainConfig.early` of the
steps, or sooner, where a sign is looked for after each epoch
(`TrainConfig.early_ends`):

    heldout       accuracy on the given labels of held-out examples, the memory
                  off: has not risen for two epochs
    weight_norm   norm of the given network's weights: has fallen
    share         none is looked for
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.behaviours import Behaviours
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import steps_per_epoch
from tfmemloc.data.examples import Examples
from tfmemloc.training import workers
from tfmemloc.training.tables import one_of_all_replicas

# After how many epochs without a rise it is over.
_PATIENCE: Mapping[str, int] = {"heldout": 2, "weight_norm": 1}


class Early:
    """Knows which steps are early.

    Args:
        model: the network that is trained.
        examples: the training examples.
        training: gives `early` and `early_ends`.

    Attributes:
        variables: what a run saves to go on where it was killed.
    """

    def __init__(
        self, model: keras.Model, examples: Examples, training: TrainConfig
    ):
        steps = steps_per_epoch(len(examples), training.batch_size)
        self._model = model
        self._sign = training.early_ends
        self._last = one_of_all_replicas(
            np.int64(round(training.early * steps * training.epochs))
        )
        self._best = one_of_all_replicas(np.float32(-1))
        self._without_rise = one_of_all_replicas(np.int64(0))
        self.variables: list[tf.Variable] = []
        if self._sign != "share":
            self.variables = [self._last, self._best, self._without_rise]

    def has(self, step: tf.Tensor) -> tf.Tensor:
        """Whether the step, the first of which is number 1, is early."""
        return step <= self._last

    def look(
        self, examples: Examples, step: int, strategy: tf.distribute.Strategy
    ) -> bool:
        """Looks for the sign after an epoch; whether it ends with this step.

        Args:
            examples: of the run, the held-out ones among them.
            step: the last one of the epoch.
            strategy: of the training, whose first worker looks.
        """
        if self._sign == "share" or step >= int(self._last.numpy()):
            return False
        ends = workers.first_says(strategy, lambda: self._is_seen(examples))
        if ends:
            self._last.assign(step)
        return ends

    def _is_seen(self, examples: Examples) -> bool:
        # Rounded as what is kept of it is, so that equal is not more.
        value, best = np.float32(self._value(examples)), self._best.numpy()
        without = 0 if value > best else int(self._without_rise.numpy()) + 1
        self._best.assign(max(value, best))
        self._without_rise.assign(without)
        return without >= _PATIENCE[self._sign]

    def _value(self, examples: Examples) -> float:
        if self._sign == "weight_norm":
            weights = [tf.convert_to_tensor(v) for v in self._given]
            return float(tf.linalg.global_norm(weights))
        heldout = examples.of_subset("heldout")
        (metrics,) = self._dropped.evaluate(heldout).values()
        return metrics.of("heldout")["accuracy"]

    @functools.cached_property
    def _given(self) -> list[keras.Variable]:
        """What is trained of the given network, without its memory."""
        memory = {id(v) for v in graph.memory_variables(self._model)}
        return [
            v for v in self._model.trainable_variables if id(v) not in memory
        ]

    @functools.cached_property
    def _dropped(self) -> Behaviours:
        return Behaviours(self._model, ["drop"])


def look(
    rule: object,
    examples: Examples,
    step: int,
    strategy: tf.distribute.Strategy,
) -> bool:
    """`Early.look` of a rule that has an early part."""
    part = getattr(rule, "early", None)
    return part is not None and part.look(examples, step, strategy)


def check(rule: object, examples: Examples, training: TrainConfig) -> None:
    """Refuses a sign that cannot be looked for.

    Raises:
        ValueError: the rule has no early part, or there is nothing held out.
    """
    sign = training.early_ends
    if sign == "share":
        return
    if not hasattr(rule, "early"):
        raise ValueError(
            f"early_ends={sign!r} says when the early part of a training ends, "
            "and this rule has none. Expected a rule such as "
            '"drop_pass_gate", "routed_suspects" or "late_tying". Received: '
            f"rule={training.rule!r}."
        )
    if sign == "heldout" and "heldout" not in examples.subsets:
        raise ValueError(
            'early_ends="heldout" looks at examples that the network is not '
            "trained on. Expected a subset `heldout` (--heldout=0.1 keeps one "
            f"aside). Received: {examples.name} with "
            f"{', '.join(examples.subsets)}."
        )
