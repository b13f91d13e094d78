"""Memory at the output: each example has parameters for its own wrong label.

    p' = normalized(clip(p + u^2 e_y - v^2 (1 - e_y)))

with p the network's probabilities, e_y the label as one-hot, and for each
example a number u and a vector v of its own. The network and u minimize the
cross-entropy of p'; v minimizes |e_max + u^2 e_y - v^2 (1 - e_y) - e_y|^2, with
e_max the likeliest class as one-hot.
What a wrong label asks for is soon said by u and v, and no longer by the
network, which is served without them.

A rival of example-tied dropout that keeps the memory of an example behind the
last layer, not in units within. It needs no tied layers.

Reference: Liu, Zhu, Qu and You, "Robust Training under Label Noise by
Over-parameterization", ICML 2022, equations 3 and 5 and their code.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import IDS, Examples
from tfmemloc.training.by_example import ByExample
from tfmemloc.training.rules import cross_entropy

# The authors' step sizes for u and v on CIFAR-10, by plain SGD.
_RATE_U, _RATE_V = 10.0, 10.0
# The authors draw the start with this deviation; signs do not matter, squared.
_START = 1e-8
_LEAST = 1e-4  # Of a probability.


class OverParameterized:
    """The rule; has u and v of each example, [N, 1 + classes] by id.

    Args:
        examples: the training examples.
        training: how.

    Raises:
        ValueError: their labels are next tokens.

    Attributes:
        tables: u and v.
        variables: what a run saves to go on where it was killed.
    """

    def __init__(self, examples: Examples, training: TrainConfig):
        if examples.label.ndim != 1:
            raise ValueError(
                'rule="sop" has parameters for each class of an example. '
                f"Expected labels [N]. Received: shape {examples.label.shape}; "
                'for next tokens use rule="generalized_cross_entropy".'
            )
        self._table = ByExample(
            "sop",
            examples,
            training,
            width=1 + examples.classes,
            start=_START,
            dtype=np.float32,
        )
        self.tables = [self._table]
        self.variables = self._table.variables

    def __call__(
        self,
        model: keras.Model,
        inputs: Mapping[str, tf.Tensor],
        label: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy of p' of each example [B], and the logits."""
        _, logits = cross_entropy.rule(model, inputs, label)
        p = tf.nn.softmax(tf.cast(logits, tf.float32))
        is_label = tf.one_hot(label, p.shape[1])
        rows = self._table.rows(inputs[IDS])
        own = self._table.read(rows)
        losses = _entropy(p, is_label, own)
        self._learn(rows, own, tf.stop_gradient(p), is_label)
        return losses, logits

    def _learn(self, rows, own, p, is_label) -> None:
        """A step of u and v, each by the gradient of its own loss."""
        with tf.GradientTape() as tape:
            tape.watch(own)
            entropy = _entropy(p, is_label, own)
            squares = _distance(p, is_label, own)
            loss = tf.reduce_sum(entropy + squares)
        rates = tf.constant([_RATE_U] + [_RATE_V] * p.shape[1])
        # Of the mean over the batch, which may be a short one.
        size = tf.distribute.get_replica_context().all_reduce(
            "sum", tf.cast(tf.shape(own)[0], tf.float32)
        )
        after = own - rates / size * tape.gradient(loss, own)
        self._table.write(rows, after)


def _moved(is_label, own) -> tuple[tf.Tensor, tf.Tensor]:
    """u^2 e_y and v^2 (1 - e_y), [B, classes], at most 1."""
    squares = tf.clip_by_value(tf.square(own), 0.0, 1.0)
    return squares[:, :1] * is_label, squares[:, 1:] * (1 - is_label)


def _entropy(p, is_label, own) -> tf.Tensor:
    """-log p'_y, [B]; teaches the network and u, not v."""
    more, less = _moved(is_label, own)
    moved = tf.maximum(p + more - tf.stop_gradient(less), _LEAST)
    moved /= tf.reduce_sum(moved, axis=1, keepdims=True)
    of_label = tf.reduce_sum(is_label * moved, axis=1)
    return -tf.math.log(tf.clip_by_value(of_label, _LEAST, 1.0))


def _distance(p, is_label, own) -> tf.Tensor:
    """Squared distance of the moved prediction from the label, [B]: for v."""
    more, less = _moved(is_label, own)
    predicted = tf.one_hot(tf.argmax(p, axis=1), p.shape[1])
    moved = predicted + tf.stop_gradient(more) - less
    return tf.reduce_sum(tf.square(moved - is_label), axis=1)


def make(
    model: keras.Model, examples: Examples, training: TrainConfig
) -> OverParameterized:
    """The rule for a training of any network on these examples."""
    del model
    return OverParameterized(examples, training)
