"""The drop-mode pass: part of each batch without its memory.

Example-tied dropout never asks the dropped network for anything: in training
the generalization units are always helped by memorization units. Here a share
of the examples of each step (`TrainConfig.memory_off`) passes with them off,
and gets a loss that does not insist on labels which the dropped network does
not believe; the others get the ordinary cross-entropy. Which examples do is a
function of (seed, step, id). All pass together, at the cost of one pass; the
recording of the training holds what the step saw, with memory or without.

On a network without tied layers the same examples get the same loss: the
control for whether the gain is the dropout's or the loss's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import without_memory
from tfmemloc.data.examples import IDS
from tfmemloc.layers import masks
from tfmemloc.training.beliefs import Beliefs
from tfmemloc.training.early import Early
from tfmemloc.training.rules import cross_entropy
from tfmemloc.training.tables import step_counter

# (ids [B], label, logits, cross-entropy [B], off [B]) -> losses [B]
DropLoss = Callable[..., tf.Tensor]


class MemoryOff:
    """Draws whose memory is off in a step: a function of (seed, step, id).

    Args:
        training: gives the share `memory_off` and the seed.

    Attributes:
        step: how often it has drawn.
        is_used: whether any example's ever is.
    """

    def __init__(self, training: TrainConfig):
        self._share = training.memory_off
        self.is_used = training.memory_off > 0
        self._seed = masks.fold_seed(training.seed, "memory off")
        self.step = step_counter()

    def drawn(self, ids: tf.Tensor) -> tf.Tensor:
        """Whose memory is off in this step, bool [B]; counts the step."""
        off = masks.drawn(self._seed, self.step, ids, self._share)
        self.step.assign_add(1)
        return off


class DropPass:
    """A rule with a drop-mode pass.

    Attributes:
        passes_without_memory: whether some examples do.
        tables: what it keeps of each example.
        variables: what a run saves to go on where it was killed.

    Args:
        training: gives the share `memory_off` and the seed.
        drop_loss: (ids [B], label, logits, cross-entropy [B], off [B]) ->
            the loss of each example [B], of which those with their memory
            off are used.
        beliefs: that `drop_loss` keeps.
        early: which steps are early for it.
    """

    def __init__(
        self,
        training: TrainConfig,
        drop_loss: DropLoss,
        beliefs: Beliefs | None = None,
        early: Early | None = None,
    ):
        self._memory_off = MemoryOff(training)
        self.passes_without_memory = self._memory_off.is_used
        self._drop_loss = drop_loss
        self.step = self._memory_off.step
        self.tables = [] if beliefs is None else [beliefs.table]
        self.variables = [self.step]
        for table in self.tables:
            self.variables += table.variables
        if early is not None:
            self.early = early
            self.variables += early.variables

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss of each example [B], and the logits."""
        ids = inputs[IDS]
        off = self._memory_off.drawn(ids)
        entropy, logits = cross_entropy.rule(
            model, without_memory(inputs, off), label
        )
        dropped = self._drop_loss(ids, label, logits, entropy, off)
        return tf.where(off, dropped, entropy), logits
