"""The ordinary rule: cross-entropy of the labels (paper, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import keras
import tensorflow as tf

from tfmemloc import losses
from tfmemloc.evaluation import as_logits
from tfmemloc.graph.inputs import arranged


def rule(
    model: keras.Model, inputs: Mapping[str, tf.Tensor], label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross-entropy of each example [B], and the logits."""
    return of_outputs(
        model, model(arranged(model, inputs), training=True), label
    )


def of_outputs(
    model: keras.Model, outputs: tf.Tensor, label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same, where the model was called already."""
    logits = as_logits(model, outputs)
    return losses.cross_entropy(label, logits), logits
