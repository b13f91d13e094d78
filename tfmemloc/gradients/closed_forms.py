"""The closed form of each layer's per-example gradient.

For a layer call with input x and the gradient g of the summed loss with respect
to its output (before the activation), each function here gives the gradients
of the layer's weights as `terms`, or None where it has no closed form.
"""

from __future__ import annotations

import functools
import math

import keras
import numpy as np
import tensorflow as tf

from tfmemloc.gradients.terms import (
    Factored,
    Full,
    Lookup,
    Sliding,
    Term,
    Windowed,
    rows_at,
)
from tfmemloc.layers.decoding import AddPositions
from tfmemloc.layers.switchable_batch_norm import SwitchableBatchNormalization
from tfmemloc.layers.temperature import Temperature
from tfmemloc.models.vit import TokenEmbedding


def _dense(layer, x, g):
    x = tf.cast(x, tf.float32)
    rows, columns = x.shape[-1], g.shape[-1]
    term = Factored(
        rows_at(tf.reshape(x, [-1, math.prod(x.shape[1:-1]), 1, rows])),
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
        rows_at(arrange(x, inputs, rows)),
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
    """Conv1D and Conv2D with groups; the left factor is what a kernel sees."""
    if layer.data_format != "channels_last":
        return None
    sliding = _sliding(layer, x, g)
    kernel = layer.kernel.shape
    window, columns = math.prod(kernel[:-2]), kernel[-1] // layer.groups
    rows, groups = kernel[-2], layer.groups

    def left_at(places):
        left = _patches_at(sliding, places)
        positions = left.shape[1]
        if groups > 1:
            left = tf.reshape(left, [-1, positions, window, groups, rows])
            left = tf.transpose(left, [0, 1, 3, 2, 4])
        return tf.reshape(left, [-1, positions, groups, window * rows])

    grouped = [window, rows, groups, columns]
    make = Factored
    if groups == 1 and window > 1:
        make = functools.partial(Windowed, sliding=sliding)
    term = make(
        left_at,
        tf.reshape(g, [-1, math.prod(g.shape[1:-1]), groups, columns]),
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
    if layer.data_format != "channels_last":
        return None
    sliding = _sliding(layer, x, g)
    kernel = layer.kernel.shape
    window, channels, columns = math.prod(kernel[:-2]), kernel[-2], kernel[-1]

    def left_at(places):
        left = _patches_at(sliding, places)
        left = tf.reshape(left, [-1, left.shape[1], window, channels])
        return tf.transpose(left, [0, 1, 3, 2])

    term = Factored(
        left_at,
        tf.reshape(g, [-1, math.prod(g.shape[1:-1]), channels, columns]),
        lambda value: tf.reshape(
            tf.transpose(value, [0, 2, 1, 3]), [-1, *kernel]
        ),
        lambda weight: tf.transpose(
            tf.reshape(weight, [window, channels, columns]), [1, 0, 2]
        ),
    )
    return _with_bias(layer, term, g)


def _sliding(layer, x, g) -> Sliding:
    """The padded inputs as pictures (Conv1D has width 1), and the kernel."""
    x = tf.cast(x, tf.float32)
    size, strides, rates = (
        (*of, 1)[:2]
        for of in (layer.kernel_size, layer.strides, layer.dilation_rate)
    )
    if len(layer.kernel_size) == 1:
        x = x[:, :, tf.newaxis]
    places = (*g.shape[1:-1], 1)[:2]
    padding = []
    for axis in range(2):
        reach = (size[axis] - 1) * rates[axis] + 1
        spare = (places[axis] - 1) * strides[axis] + reach - x.shape[axis + 1]
        spare = max(spare, 0)  # Of a valid convolution none is.
        before = spare if layer.padding == "causal" else spare // 2
        padding.append((before, spare - before))
    pixels = tf.pad(x, [(0, 0), *padding, (0, 0)])
    return Sliding(pixels, places, size, strides, rates)


def _patches_at(sliding: Sliding, places: np.ndarray | None) -> tf.Tensor:
    """What the kernel sees at some of T places, or at all: [B, P, window C]."""
    pixels = sliding.pixels
    channels, window = pixels.shape[3], math.prod(sliding.size)
    if places is not None:
        seen = _window_index(sliding)[places]
        flat = tf.reshape(pixels, [-1, math.prod(pixels.shape[1:3]), channels])
        found = tf.gather(flat, seen.ravel(), axis=1)
        return tf.reshape(found, [-1, len(seen), window * channels])
    if window == 1:
        found = pixels[:, :: sliding.strides[0], :: sliding.strides[1]]
    else:
        found = tf.image.extract_patches(
            pixels,
            [1, *sliding.size, 1],
            [1, *sliding.strides, 1],
            [1, *sliding.rates, 1],
            "VALID",
        )
    return tf.reshape(found, [-1, math.prod(sliding.places), window * channels])


def _window_index(sliding: Sliding) -> np.ndarray:
    """Which of the flat pixels a kernel sees at each place: [T, window]."""
    rows, columns = (
        stride * np.arange(places)[:, np.newaxis] + rate * np.arange(size)
        for places, size, stride, rate in zip(*sliding[1:], strict=True)
    )
    rows = rows[:, np.newaxis, :, np.newaxis]
    columns = columns[np.newaxis, :, np.newaxis, :]
    index = rows * sliding.pixels.shape[2] + columns
    return index.reshape(math.prod(sliding.places), math.prod(sliding.size))


def _switchable_batch_norm(layer, x, g):
    """Frozen statistics of the layer's behaviour."""
    return _batch_norm(layer, x, g, layer.inference_statistics)


def _batch_norm(layer, x, g, statistics=None):
    """Frozen statistics: the normalized input does not depend on the batch."""
    mean, variance = (
        _along(layer.axis, x.shape.rank, tf.convert_to_tensor(value))
        for value in statistics or (layer.moving_mean, layer.moving_variance)
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


def _positions(layer, x, g):
    """What is added to every example gets the gradient of the sum."""
    missing = layer.position.shape[0] - g.shape[1]
    return [(layer.position, Full(tf.pad(g, [[0, 0], [0, missing], [0, 0]])))]


def _token_embedding(layer, x, g):
    """The class token stands first; positions are added to all."""
    del x
    return [
        (layer.class_token, Full(g[:, tf.newaxis, :1])),
        (layer.position, Full(g[:, tf.newaxis])),
    ]


def _temperature(layer, x, g):
    """d (x exp(t)) / dt is the output itself."""
    temperature = tf.convert_to_tensor(layer.temperature)
    axes = list(range(1, x.shape.rank))
    product = tf.reduce_sum(tf.cast(x, tf.float32) * g, axes)
    return [(layer.temperature, Full(product * tf.exp(temperature)))]


# Exact types: a subclass may compute something else.
HANDLERS = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum_dense,
    keras.layers.Conv1D: _conv,
    keras.layers.Conv2D: _conv,
    keras.layers.DepthwiseConv1D: _depthwise_conv,
    keras.layers.DepthwiseConv2D: _depthwise_conv,
    keras.layers.BatchNormalization: _batch_norm,
    SwitchableBatchNormalization: _switchable_batch_norm,
    keras.layers.LayerNormalization: _layer_norm,
    keras.layers.GroupNormalization: _group_norm,
    keras.layers.Embedding: _embedding,
    AddPositions: _positions,
    Temperature: _temperature,
    TokenEmbedding: _token_embedding,
}


def _along(axis: int, rank: int, vector) -> tf.Tensor:
    shape = [1] * rank
    shape[axis] = -1
    return tf.reshape(tf.cast(vector, tf.float32), shape)
