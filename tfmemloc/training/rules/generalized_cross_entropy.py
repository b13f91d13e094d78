"""Generalized cross-entropy: a loss that does not insist on every label.

    (1 - p_y ** q) / q,  q = 0.7

with p_y the probability of the given label. Where the network is sure of
another class the gradient fades, so that fewer wrong labels are memorized. A
control: is it the dropout that forgets, or the loss?

Reference: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep
Neural Networks with Noisy Labels", 2018, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import tensorflow as tf

from tfmemloc.training.rules import cross_entropy

_Q = 0.7


def rule(
    model: keras.Model, inputs: Mapping[str, tf.Tensor], label: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss of each example [B], and the logits."""
    entropy, logits = cross_entropy.rule(model, inputs, label)
    return of_entropy(entropy), logits


def of_entropy(entropy: tf.Tensor) -> tf.Tensor:
    """The loss [B] of the cross-entropy [B]."""
    # p_y = exp(-entropy); of a sequence, the geometric mean of its tokens'.
    return (1 - tf.exp(-_Q * entropy)) / _Q
