"""Per-example gradients of one layer, without a loop over examples.

For a layer call with input x and the gradient g of the summed loss with
respect to its output (before the activation), the gradient of example i with
respect to a weight is known in closed form. Three forms cover all layers:

- `Factored`: sum over positions t of  left[i, t] (outer product) right[i, t],
  in each of G groups. Dense and EinsumDense layers have it with their inputs,
  convolutions with the patches of theirs.
- `Windowed`: the same of a convolution without groups, by slices of its inputs,
  which take less time and memory than patches.
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
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Sliding(NamedTuple):
    """What a kernel slides over, and how, along height and width.

    Attributes:
        pixels: [B, height, width, C] float32, with their padding.
        places: of the output; T is their product.
        size: of the kernel.
        strides: of the kernel.
        rates: of dilation.
    """

    pixels: tf.Tensor
    places: tuple[int, int]
    size: tuple[int, int]
    strides: tuple[int, int]
    rates: tuple[int, int]


# What an entry of a Gram matrix costs beside its products, in multiplications:
# measured on 3 x 3 kernels, 64 to 256 positions, on one CPU thread.
_ENTRY = 400


@dataclasses.dataclass
class Windowed(Factored):
    """That of a convolution: the left factor are windows of the input.

    Of window k = (a, b) the left rows at all positions are one slice of the
    pixels, and the gradient of that part of the kernel is

        full()[i, k]  =  slice_k[i]' right[i]            [C, O].

    Where positions are few, the norm comes from Gram matrices: that of the
    windows is a sum of slices of the pixels' own.

    Attributes:
        sliding: what the kernel slides over, and how.
    """

    sliding: Sliding

    def norms_squared(self) -> tf.Tensor:
        """[B]; in the cheaper of the two forms."""
        if self._few_positions():
            gram = self._window_gram()
            right = self.right[:, :, 0]
            gram *= tf.matmul(right, right, transpose_b=True)
            return tf.reduce_sum(gram, axis=[1, 2])
        return tf.add_n(
            [
                tf.reduce_sum(product**2, axis=[1, 2])
                for product in self._products_by_window()
            ]
        )

    def dot(self, direction: tf.Tensor) -> tf.Tensor:
        """[B]; the inputs convolved with the direction, times `right`."""
        weight = tf.reshape(
            direction, [*self.sliding.size, *direction.shape[-2:]]
        )
        projected = tf.nn.conv2d(
            self.sliding.pixels,
            weight,
            self.sliding.strides,
            "VALID",
            dilations=self.sliding.rates,
        )
        right = tf.reshape(self.right, tf.shape(projected))
        return tf.reduce_sum(projected * right, axis=[1, 2, 3])

    def full(self) -> tf.Tensor:
        """[B, *shape of the weight]."""
        products = tf.concat(self._products_by_window(), axis=1)
        return self.to_weight(products[:, tf.newaxis])

    def _few_positions(self) -> bool:
        if self.sliding.strides != (1, 1):
            return False  # Of the pixels' products most would not be used.
        positions, pixels = (
            math.prod(self.sliding.places),
            self.sliding.pixels.shape[1:3],
        )
        rows, columns = self.sliding.pixels.shape[3], self.right.shape[3]
        by_window = math.prod(self.sliding.size) * positions * rows * columns
        gram = math.prod(pixels) ** 2 * rows
        gram += positions**2 * (columns + _ENTRY)
        return gram < by_window

    def _products_by_window(self) -> list[tf.Tensor]:
        """[B, C, O] for each place in the kernel, row by row."""
        right = self.right[:, :, 0]
        positions, channels = (
            math.prod(self.sliding.places),
            self.sliding.pixels.shape[3],
        )
        pixels = self._pixels_by_stride()
        products = []
        for a, b in itertools.product(*map(range, self.sliding.size)):
            rows, row = self._seen(0, a)
            columns, column = self._seen(1, b)
            seen = pixels[:, rows, row, columns, column]
            left = tf.reshape(seen, [-1, positions, channels])
            products.append(tf.matmul(left, right, transpose_a=True))
        return products

    def _window_gram(self) -> tf.Tensor:
        """Products of the windows at each two positions: [B, T, T]."""
        height, width, channels = self.sliding.pixels.shape[1:]
        flat = tf.reshape(self.sliding.pixels, [-1, height * width, channels])
        gram = tf.reshape(
            tf.matmul(flat, flat, transpose_b=True),
            [-1, height, width, height, width],
        )
        rows = [self._seen(0, a)[0] for a in range(self.sliding.size[0])]
        gram = tf.add_n([gram[:, at, :, at] for at in rows])
        columns = [self._seen(1, b)[0] for b in range(self.sliding.size[1])]
        gram = tf.add_n([gram[:, :, at, :, at] for at in columns])
        positions = math.prod(self.sliding.places)
        return tf.reshape(gram, [-1, positions, positions])

    def _pixels_by_stride(self) -> tf.Tensor:
        """[B, height / stride, stride, width / stride, stride, C].

        Slices that skip pixels take TensorFlow several times as long as those
        that do not.
        """
        shape, padding = [-1], [(0, 0)]
        for axis, stride in enumerate(self.sliding.strides):
            size = self.sliding.pixels.shape[axis + 1]
            padding.append((0, -size % stride))
            shape += [-(-size // stride), stride]
        pixels = tf.pad(self.sliding.pixels, [*padding, (0, 0)])
        return tf.reshape(pixels, [*shape, self.sliding.pixels.shape[3]])

    def _seen(self, axis: int, offset: int) -> tuple[slice, int]:
        """The pixels that one place of the kernel sees along an axis.

        Which ones by stride, and which within a stride.
        """
        start, within = divmod(
            offset * self.sliding.rates[axis], self.sliding.strides[axis]
        )
        return slice(start, start + self.sliding.places[axis]), within


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


Term = Full | Factored | Lookup  # A Windowed is a Factored.


def add_terms(terms: Sequence[Term]) -> Term:
    """The gradient of a weight that is used more than once."""
    first = terms[0]
    if len(terms) == 1:
        return first
    if all(isinstance(term, Factored) for term in terms):
        return Factored(
            rows_at(tf.concat([term.left for term in terms], axis=1)),
            tf.concat([term.right for term in terms], axis=1),
            first.to_weight,
            first.from_weight,
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
