"""Per-example gradients of one layer, without a loop over examples.

For a layer call with input x and the gradient g of the summed loss with
respect to its output (before the activation), the gradient of example i with
respect to a weight is known in closed form. Three forms cover all layers:

- `Factored`: sum over positions t of  left[i, t] (outer product) right[i, t],
  in each of G groups. Dense and EinsumDense layers have it with their inputs,
  convolutions with the patches of theirs.
- `Lookup`: the same with one-hot rows on the left; Embedding.
- `Full`: the gradient itself; scales and biases, which are small.

Each knows its squared norm and its product with a given direction without
(where that is cheaper) being formed. Everything is accumulated in float32.

    norms_squared()[i]  =  || full()[i] ||**2
    dot(d)[i]           =  <full()[i], d>
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmemloc import graph


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
        left: [B, T, G, I] float32.
        right: [B, T, G, O] float32.
        to_weight: [B, G, I, O] -> [B, *shape of the weight].
        from_weight: [*shape of the weight] -> [G, I, O].
    """

    left: tf.Tensor
    right: tf.Tensor
    to_weight: Callable[[tf.Tensor], tf.Tensor]
    from_weight: Callable[[tf.Tensor], tf.Tensor]

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
            left=tf.concat([term.left for term in terms], axis=1),
            right=tf.concat([term.right for term in terms], axis=1),
        )
    if all(isinstance(term, Lookup) for term in terms):
        return dataclasses.replace(
            first,
            index=tf.concat([term.index for term in terms], axis=1),
            right=tf.concat([term.right for term in terms], axis=1),
        )
    return Full(tf.add_n([term.full() for term in terms]))


@dataclasses.dataclass
class Call:
    """One call of a layer: what went in, what came out.

    Attributes:
        layer: which layer.
        args: positional arguments.
        kwargs: named arguments.
        output: before the layer's activation, where it has one of its own.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


def weighted_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that own trainable weights themselves, however nested."""
    found = []
    for layer in model._flatten_layers(include_self=True, recursive=True):
        inner = {
            id(variable)
            for other in layer._flatten_layers(include_self=False)
            for variable in other.trainable_variables
        }
        if any(id(v) not in inner for v in layer.trainable_variables):
            found.append(layer)
    return found


@contextlib.contextmanager
def recorded_calls(
    layers: Sequence[keras.layers.Layer],
) -> Iterator[list[Call]]:
    """Records every call of `layers` while a function is traced.

    Works wherever the layers stand: nested, shared, or in a subclassed model.
    The layers are as before when the context ends.
    """
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_recording(layer, calls))
        yield calls


@contextlib.contextmanager
def _recording(layer, calls: list[Call]) -> Iterator[None]:
    call, activation = layer.call, vars(layer).get("activation")

    def recording_call(*args, **kwargs):
        record = Call(layer, args, kwargs)
        calls.append(record)
        output = call(*args, **kwargs)
        if record.output is None:
            record.output = output
        return output

    def recording_activation(x):
        calls[-1].output = x
        return activation(x)

    has_own = activation is not None and type(layer) in _HANDLERS
    with graph.intercepted(
        layer, recording_call, recording_activation if has_own else None
    ):
        yield


def terms_of_call(
    call: Call, gradient: tf.Tensor
) -> list[tuple[keras.Variable, Term]] | None:
    """The closed forms of one call, or None where there are none.

    Args:
        call: from `recorded_calls`.
        gradient: of the summed loss with respect to `call.output`.
    """
    handler = _HANDLERS.get(type(call.layer))
    if handler is None or not call.args:
        return None
    # Sums over examples and positions lose too much in half precision.
    return handler(call.layer, call.args[0], tf.cast(gradient, tf.float32))


def dense_gradients(
    tape: tf.GradientTape,
    target: Any,
    variables: Sequence[keras.Variable],
    **options: Any,
) -> list[tf.Tensor]:
    """Gradients of variables: zeros where unconnected, no IndexedSlices."""
    found = tape.gradient(
        target,
        [variable.value for variable in variables],
        unconnected_gradients="zero",
        **options,
    )
    return [tf.convert_to_tensor(gradient) for gradient in found]


def terms_by_vectorized_map(
    call: Call, gradient: Any
) -> list[tuple[keras.Variable, Term]]:
    """The terms of any layer: its vector-Jacobian product, example by example.

    Only this layer is computed again, under `tf.vectorized_map`.
    """
    layer = call.layer
    variables = layer.trainable_variables
    structure = (call.args, call.kwargs)
    leaves = keras.tree.flatten(structure)
    is_mapped = [tf.is_tensor(leaf) and leaf.shape.rank > 0 for leaf in leaves]
    mapped = [leaf for leaf, yes in zip(leaves, is_mapped, strict=True) if yes]

    def one(arguments):
        slices, upstream = arguments
        slices = iter(slices)
        args, kwargs = keras.tree.pack_sequence_as(
            structure,
            [
                next(slices)[tf.newaxis] if yes else leaf
                for leaf, yes in zip(leaves, is_mapped, strict=True)
            ],
        )
        with tf.GradientTape() as tape:
            output = layer.call(*args, **kwargs)
        upstream = keras.tree.map_structure(lambda g: g[tf.newaxis], upstream)
        return dense_gradients(
            tape, output, variables, output_gradients=upstream
        )

    values = tf.vectorized_map(one, (mapped, gradient))
    return [
        (variable, Full(tf.cast(value, tf.float32)))
        for variable, value in zip(variables, values, strict=True)
    ]


def _dense(layer, x, g):
    x = tf.cast(x, tf.float32)
    rows, columns = x.shape[-1], g.shape[-1]
    term = Factored(
        tf.reshape(x, [-1, math.prod(x.shape[1:-1]), 1, rows]),
        tf.reshape(g, [-1, math.prod(g.shape[1:-1]), 1, columns]),
        lambda value: tf.reshape(value, [-1, rows, columns]),
        lambda weight: tf.reshape(weight, [1, rows, columns]),
    )
    return _with_bias(layer, term, g)


def _with_bias(layer, term: Term, g):
    terms = [(layer.kernel, term)]
    if layer.use_bias if hasattr(layer, "use_bias") else layer.bias is not None:
        terms.append((layer.bias, Full(_sum_to(g, layer.bias.shape))))
    return terms


def _sum_to(g, shape) -> tf.Tensor:
    """Sums g [B, ...] to [B, *shape], undoing a broadcast of `shape`."""
    extra = len(g.shape) - 1 - len(shape)
    g = tf.reduce_sum(g, axis=list(range(1, 1 + extra)))
    ones = [i + 1 for i, size in enumerate(shape) if size == 1]
    return tf.reduce_sum(g, axis=ones, keepdims=True) if ones else g


def _einsum_dense(layer, x, g):
    """Any equation whose kernel axes are contracted, kept or shared."""
    x = tf.cast(x, tf.float32)
    labels = _einsum_labels(layer.equation, x.shape.rank)
    if labels is None:
        return None
    inputs, kernel, outputs = labels
    batch = inputs[0]
    groups = [c for c in kernel if c in inputs and c in outputs]
    rows = [c for c in kernel if c in inputs and c not in outputs]
    columns = [c for c in kernel if c not in inputs and c in outputs]
    positions = [c for c in inputs[1:] if c in outputs and c not in kernel]
    known = {batch, *groups, *rows, *columns, *positions}
    if batch in kernel or outputs[0] != batch:
        return None
    if not known.issuperset(inputs + outputs + kernel):
        return None
    size = dict(zip(kernel, layer.kernel.shape, strict=True))
    size |= dict(zip(inputs[1:], x.shape[1:], strict=True))

    def arrange(tensor, of, last):
        order = [batch, *positions, *groups, *last]
        permuted = tf.transpose(tensor, [of.index(c) for c in order])
        return tf.reshape(
            permuted,
            [-1]
            + [
                math.prod(size[c] for c in part)
                for part in (positions, groups, last)
            ],
        )

    sorted_kernel = [*groups, *rows, *columns]
    to_kernel = [1 + sorted_kernel.index(c) for c in kernel]
    counts = [
        math.prod(size[c] for c in part) for part in (groups, rows, columns)
    ]
    term = Factored(
        arrange(x, inputs, rows),
        arrange(g, outputs, columns),
        lambda value: tf.transpose(
            tf.reshape(value, [-1] + [size[c] for c in sorted_kernel]),
            [0, *to_kernel],
        ),
        lambda weight: tf.reshape(
            tf.transpose(weight, [kernel.index(c) for c in sorted_kernel]),
            counts,
        ),
    )
    return _with_bias(layer, term, g)


def _einsum_labels(equation: str, rank: int) -> list[str] | None:
    """Input, kernel and output labels, an ellipsis written out."""
    left, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    if "..." in kernel:
        return None
    spare = [c for c in "ABCDEFGHIJKLMNOP" if c not in equation]
    dots = "".join(spare[: rank - len(inputs.replace("...", ""))])
    parts = [part.replace("...", dots) for part in (inputs, kernel, outputs)]
    # A repeated label is a diagonal, which is left to vectorized_map.
    if any(len(set(part)) < len(part) for part in parts):
        return None
    return parts


def _conv(layer, x, g):
    """Conv1D and Conv2D with groups; the patches are the left factor."""
    patches = _patches(layer, x)
    if patches is None:
        return None
    kernel = layer.kernel.shape
    window, columns = math.prod(kernel[:-2]), kernel[-1] // layer.groups
    rows, groups = kernel[-2], layer.groups
    positions = math.prod(g.shape[1:-1])
    left = tf.reshape(patches, [-1, positions, window, groups, rows])
    if groups > 1:
        left = tf.transpose(left, [0, 1, 3, 2, 4])
    grouped = [window, rows, groups, columns]
    term = Factored(
        tf.reshape(left, [-1, positions, groups, window * rows]),
        tf.reshape(g, [-1, positions, groups, columns]),
        lambda value: tf.reshape(
            tf.transpose(
                tf.reshape(value, [-1, groups, window, rows, columns]),
                [0, 2, 3, 1, 4],
            ),
            [-1, *kernel],
        ),
        lambda weight: tf.reshape(
            tf.transpose(tf.reshape(weight, grouped), [2, 0, 1, 3]),
            [groups, window * rows, columns],
        ),
    )
    return _with_bias(layer, term, g)


def _depthwise_conv(layer, x, g):
    """Each input channel is a group with its own small kernel."""
    patches = _patches(layer, x)
    if patches is None:
        return None
    kernel = layer.kernel.shape
    window, channels, columns = math.prod(kernel[:-2]), kernel[-2], kernel[-1]
    positions = math.prod(g.shape[1:-1])
    left = tf.reshape(patches, [-1, positions, window, channels])
    term = Factored(
        tf.transpose(left, [0, 1, 3, 2]),
        tf.reshape(g, [-1, positions, channels, columns]),
        lambda value: tf.reshape(
            tf.transpose(value, [0, 2, 1, 3]), [-1, *kernel]
        ),
        lambda weight: tf.transpose(
            tf.reshape(weight, [window, channels, columns]), [1, 0, 2]
        ),
    )
    return _with_bias(layer, term, g)


def _patches(layer, x) -> tf.Tensor | None:
    """What the kernel saw at each place: [B, height, width, window * C]."""
    if layer.data_format != "channels_last":
        return None
    x = tf.cast(x, tf.float32)
    size, strides = layer.kernel_size, layer.strides
    rates, padding = layer.dilation_rate, layer.padding
    if padding == "causal":
        x = tf.pad(x, [[0, 0], [rates[0] * (size[0] - 1), 0], [0, 0]])
        padding = "valid"
    if len(size) == 1:
        x = x[:, :, tf.newaxis]
        size, strides, rates = (*size, 1), (*strides, 1), (*rates, 1)
    if size == (1, 1):
        return x[:, :: strides[0], :: strides[1]]
    return tf.image.extract_patches(
        x, [1, *size, 1], [1, *strides, 1], [1, *rates, 1], padding.upper()
    )


def _batch_norm(layer, x, g):
    """Frozen statistics: the normalized input does not depend on the batch."""
    mean, variance = (
        _along(layer.axis, x.shape.rank, tf.convert_to_tensor(value))
        for value in (layer.moving_mean, layer.moving_variance)
    )
    normalized = (tf.cast(x, tf.float32) - mean) * tf.math.rsqrt(
        variance + layer.epsilon
    )
    return _scale_and_center(layer, normalized, g, layer.axis)


def _layer_norm(layer, x, g):
    axis = layer.axis
    axis = (
        axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    )
    if not isinstance(axis, int) or getattr(layer, "rms_scaling", False):
        return None
    x = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x, [axis], keepdims=True)
    normalized = (x - mean) * tf.math.rsqrt(variance + layer.epsilon)
    return _scale_and_center(layer, normalized, g, axis)


def _group_norm(layer, x, g):
    if layer.axis not in (-1, x.shape.rank - 1):
        return None
    channels = x.shape[-1]
    groups = channels if layer.groups == -1 else layer.groups
    grouped = tf.reshape(
        tf.cast(x, tf.float32),
        [-1, math.prod(x.shape[1:-1]), groups, channels // groups],
    )
    mean, variance = tf.nn.moments(grouped, [1, 3], keepdims=True)
    normalized = (grouped - mean) * tf.math.rsqrt(variance + layer.epsilon)
    return _scale_and_center(layer, tf.reshape(normalized, tf.shape(x)), g, -1)


def _scale_and_center(layer, normalized, g, axis: int):
    """gamma and beta of a normalization, [B, C] each."""
    axis %= g.shape.rank
    others = [i for i in range(1, g.shape.rank) if i != axis]
    terms = []
    if layer.scale:
        terms.append((layer.gamma, Full(tf.reduce_sum(g * normalized, others))))
    if layer.center:
        terms.append((layer.beta, Full(tf.reduce_sum(g, others))))
    return terms


def _embedding(layer, x, g):
    columns = g.shape[-1]
    positions = math.prod(x.shape[1:])
    term = Lookup(
        tf.cast(tf.reshape(x, [-1, positions]), tf.int64),
        tf.reshape(g, [-1, positions, columns]),
        layer.input_dim,
    )
    return [(layer.embeddings, term)]


# Exact types: a subclass may compute something else.
_HANDLERS = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum_dense,
    keras.layers.Conv1D: _conv,
    keras.layers.Conv2D: _conv,
    keras.layers.DepthwiseConv1D: _depthwise_conv,
    keras.layers.DepthwiseConv2D: _depthwise_conv,
    keras.layers.BatchNormalization: _batch_norm,
    keras.layers.LayerNormalization: _layer_norm,
    keras.layers.GroupNormalization: _group_norm,
    keras.layers.Embedding: _embedding,
}


def _flat(x) -> tf.Tensor:
    return tf.reshape(x, [tf.shape(x)[0], math.prod(x.shape[1:])])


def _by_group(x) -> tf.Tensor:
    """[B, T, G, .] -> [B, G, T, .]."""
    if x.shape[2] == 1:
        return tf.reshape(x, [-1, 1, x.shape[1], x.shape[3]])
    return tf.transpose(x, [0, 2, 1, 3])


def _along(axis: int, rank: int, vector) -> tf.Tensor:
    shape = [1] * rank
    shape[axis] = -1
    return tf.reshape(tf.cast(vector, tf.float32), shape)
