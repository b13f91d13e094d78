"""BatchNorm as the authors trained: in evaluation mode after the first epoch.

    first epoch    statistics of the batch; the moving ones move
    after it       the moving statistics, which stay as that epoch left them

The authors' code measures the network after each epoch and never switches it
back, so that from then on BatchNorm is an affine map, whose scale and offset
are still trained. Tied dropout, which has a switch of its own there, goes on.
This rule is for who wants their numbers; ours is `cross_entropy`.

Source: `train.py` and `utils.py` of the paper's code.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.configs import TrainConfig
from tfmemloc.data.batches import steps_per_epoch
from tfmemloc.data.examples import Examples
from tfmemloc.graph.inputs import arranged
from tfmemloc.training.rules import cross_entropy
from tfmemloc.training.tables import step_counter


class FirstEpochStatistics:
    """The rule; counts the steps.

    Args:
        model: the network that is trained.
        epoch_steps: how many steps the first epoch has.

    Attributes:
        variables: what a run saves to go on where it was killed.
    """

    def __init__(self, model: keras.Model, epoch_steps: int):
        # Shares all weights; in evaluation mode it still has its memory on.
        self._measured = (
            graph.with_inference(model, "tied")
            if graph.tied_layers(model)
            else model
        )
        self._epoch_steps = epoch_steps
        self._step = step_counter()
        self.variables = [self._step]

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of each example [B], and the logits."""
        is_first = self._step < self._epoch_steps
        self._step.assign_add(1)
        given = arranged(model, inputs)
        outputs = tf.cond(
            is_first,
            lambda: model(given, training=True),
            lambda: self._measured(given, training=False),
        )
        return cross_entropy.of_outputs(model, outputs, label)


def _draws(layer: keras.layers.Layer) -> bool:
    """Whether a layer, or one within it, draws numbers: dropout, noise."""
    return any(
        isinstance(value, keras.random.SeedGenerator)
        for part in layer._flatten_layers()
        for value in vars(part).values()
    )


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> FirstEpochStatistics:
    """The rule for a training of this network on these examples.

    Raises:
        ValueError: the network has no BatchNorm, or layers that evaluation
            mode would switch off; or several replicas or a GPU under XLA are
            to train it, which cannot choose between the two modes in a step.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            'rule="first_epoch_statistics" trains on one device. Expected one '
            f"replica. Received: {replicas}. Leave out --mirrored and "
            "--workers."
        )
    if training.jit_compile and tf.config.list_physical_devices("GPU"):
        # XLA 2.21 gives the choice a size that its kernels do not take.
        raise ValueError(
            'rule="first_epoch_statistics" cannot be compiled by XLA for a '
            "GPU. Expected jit_compile=False. Received: jit_compile=True."
        )
    if not graph.batch_norms(model):
        raise ValueError(
            f"Model '{model.name}' has no BatchNorm, whose statistics "
            'rule="first_epoch_statistics" is about. Expected a network with '
            'BatchNormalization layers, or rule="cross_entropy".'
        )
    random = [layer.name for layer in graph.flat_layers(model) if _draws(layer)]
    if random:
        raise ValueError(
            'rule="first_epoch_statistics" calls the network in evaluation '
            "mode after its first epoch, where it would not drop, add noise or "
            "augment any more. Expected a network without such layers, or "
            f"with example-tied dropout. Received: '{model.name}' with "
            f"{', '.join(random)}."
        )
    steps = steps_per_epoch(len(examples), training.batch_size)
    return FirstEpochStatistics(model, steps)
