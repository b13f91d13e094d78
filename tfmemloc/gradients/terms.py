"""Per-example gradients of one layer, without a loop over examples.

For a layer call with input x and the gradient g of the summed loss with
respect to its output (before the activation), the gradient of example i with
respect to a weight is known in closed form. Three forms cover all layers:

- `Factored`: sum over positions t of  left[i, t] (outer product) right[i, t],
  in each of G groups. Dense and EinsumDense layers have it with their inputs,
  convolutions with the patches of theirs.
- `Lookup`: the same with one-hot rows on the left; Embedding.
- `Full`: the gradient itself; scales and biases, which are small.

Each computes its squared norm and its product with a given direction, without
forming the gradient where that is cheaper. All sums are taken in float32.

    norms_squared()[i]  =  || full()[i] ||**2
    dot(d)[i]           =  <full()[i], d>
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


@dataclasses.dataclass
class Full:
    """A per-example gradient as it is.

    Attributes:
        value: [B, *shape of the weight] float32.
    """

    value: tf.Tensor

    def norms_squared(self) -> tf.Tensor:
        """[B]."""
        return tf.reduce_sum(_flat(self.value) ** 2, axis=1)

    def dot(self, direction: tf.Tensor) -> tf.Tensor:
        """[B], with a direction of the weight's shape."""
        return tf.linalg.matvec(_flat(self.value), tf.reshape(direction, [-1]))

    def full(self) -> tf.Tensor:
        """[B, *shape of the weight]."""
        return self.value


@dataclasses.dataclass
class Factored:
    """A sum of outer products over positions, in groups.

    Attributes:
        left_at: indices of P positions -> the left factor there,
            [B, P, G, I] float32; None -> at all T of them.
        right: [B, T, G, O] float32.
        to_weight: [B, G, I, O] -> [B, *shape of the weight].
        from_weight: [*shape of the weight] -> [G, I, O].
    """

    left_at: Callable[[np.ndarray | None], tf.Tensor]
    right: tf.Tensor
    to_weight: Callable[[tf.Tensor], tf.Tensor]
    from_weight: Callable[[tf.Tensor], tf.Tensor]

    @functools.cached_property
    def left(self) -> tf.Tensor:
        """[B, T, G, I] float32."""
        return self.left_at(None)

    def norms_squared(self) -> tf.Tensor:
        """[B]; by the Gram matrices over positions where that is cheaper."""
        positions, groups, rows = self.left.shape[1:]
        columns = self.right.shape[3]
        if positions == 1:
            left = tf.reduce_sum(self.left**2, axis=3)
            right = tf.reduce_sum(self.right**2, axis=3)
            return tf.reduce_sum(left * right, axis=[1, 2])
        del groups  # Both costs are the same multiple of it.
        if positions * (rows + columns) < rows * columns:
            left, right = _by_group(self.left), _by_group(self.right)
            gram = tf.matmul(left, left, transpose_b=True)
            gram *= tf.matmul(right, right, transpose_b=True)
            return tf.reduce_sum(gram, axis=[1, 2, 3])
        return tf.reduce_sum(self._products() ** 2, axis=[1, 2, 3])

    def dot(self, direction: tf.Tensor) -> tf.Tensor:
        """[B], with a direction of the weight's shape."""
        weight = self.from_weight(direction)
        _, positions, groups, rows = self.left.shape
        if groups == 1:
            left = tf.reshape(self.left, [-1, rows])
            projected = tf.matmul(left, weight[0])
        else:
            left = tf.transpose(self.left, [2, 0, 1, 3])
            left = tf.reshape(left, [groups, -1, rows])
            projected = tf.transpose(tf.matmul(left, weight), [1, 0, 2])
        columns = self.right.shape[3]
        projected = tf.reshape(projected, [-1, positions, groups, columns])
        return tf.reduce_sum(projected * self.right, axis=[1, 2, 3])

    def full(self) -> tf.Tensor:
        """[B, *shape of the weight]."""
        return self.to_weight(self._products())

    def _products(self) -> tf.Tensor:
        """[B, G, I, O]."""
        return tf.matmul(
            _by_group(self.left), _by_group(self.right), transpose_a=True
        )


@dataclasses.dataclass
class Lookup:
    """A sum over positions of rows of a table.

    Attributes:
        index: [B, T] int.
        right: [B, T, O] float32.
        rows: number of rows of the table.
    """

    index: tf.Tensor
    right: tf.Tensor
    rows: int

    def norms_squared(self) -> tf.Tensor:
        """[B]; positions with the same row add up before they are squared."""
        same = self.index[:, :, tf.newaxis] == self.index[:, tf.newaxis, :]
        gram = tf.matmul(self.right, self.right, transpose_b=True)
        return tf.reduce_sum(tf.where(same, gram, 0.0), axis=[1, 2])

    def dot(self, direction: tf.Tensor) -> tf.Tensor:
        """[B], with a direction of the table's shape."""
        rows = tf.gather(direction, self.index)
        return tf.reduce_sum(rows * self.right, axis=[1, 2])

    def full(self) -> tf.Tensor:
        """[B, rows, O]."""
        one_hot = tf.one_hot(self.index, self.rows)
        return tf.matmul(one_hot, self.right, transpose_a=True)


Term = Full | Factored | Lookup


def add_terms(terms: Sequence[Term]) -> Term:
    """The gradient of a weight that is used more than once."""
    first = terms[0]
    if len(terms) == 1:
        return first
    if all(isinstance(term, Factored) for term in terms):
        return dataclasses.replace(
            first,
            left_at=rows_at(tf.concat([term.left for term in terms], axis=1)),
            right=tf.concat([term.right for term in terms], axis=1),
        )
    if all(isinstance(term, Lookup) for term in terms):
        return dataclasses.replace(
            first,
            index=tf.concat([term.index for term in terms], axis=1),
            right=tf.concat([term.right for term in terms], axis=1),
        )
    return Full(tf.add_n([term.full() for term in terms]))


def rows_at(rows: tf.Tensor) -> Callable[[np.ndarray | None], tf.Tensor]:
    """`Factored.left_at` of rows [B, T, G, I] that are there already."""
    return lambda places: (
        rows if places is None else tf.gather(rows, places, axis=1)
    )


def _flat(x) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], math.prod(x.shape[1:])])


def _by_group(x) -> tf.Tensor:
    """[B, T, G, .] -> [B, G, T, .]."""
    if x.shape[2] == 1:
        return tf.reshape(x, [-1, 1, x.shape[1], x.shape[3]])
    return tf.transpose(x, [0, 2, 1, 3])
