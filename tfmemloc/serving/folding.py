"""BatchNormalization folded into the layer before it, for serving."""

from __future__ import annotations

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.serving.pruning_rules import activation_name


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Folds each BatchNorm into the convolution or dense layer before it.

    For serving only: in training the new model would not normalize. With the
    moving statistics, a kernel w and a bias b become

        w * gamma / sqrt(variance + epsilon)
        (b - mean) * gamma / sqrt(variance + epsilon) + beta

    Args:
        model: functional.

    Returns:
        A new functional model with the same outputs, up to rounding. Layers
        that are not changed are shared with `model`.

    Example:
        >>> network = build(ModelConfig("resnet9"), (8, 8, 1), 10)
        >>> len(fold_batch_norm(network).layers) < len(network.layers)
        True
    """
    model = graph.inlined(model)
    pairs = _foldable(model)
    norms = {id(norm) for _, norm in pairs.values()}

    def call(node, args, kwargs):
        if id(node.operation) in norms:
            return args[0]
        if id(node) not in pairs:
            return node.operation(*args, **kwargs)
        layer, weights = _folded(*pairs[id(node)])
        output = layer(*args, **kwargs)
        layer.set_weights(weights)
        return output

    inputs = graph.fresh_inputs(model)
    outputs = graph.replay(model, inputs, call)
    return keras.Model(inputs, outputs, name=model.name)


def _foldable(model: keras.Model) -> dict[int, tuple]:
    """id of a layer's only call -> the layer, and the BatchNorm behind it."""
    found = graph.nodes(model)
    takers = graph.consumers(found)
    # What is an output is asked for as it is.
    given = {id(t) for t in keras.tree.flatten(graph.outputs_of(model))}
    count: dict[int, int] = {}
    for node in found:
        count[id(node.operation)] = count.get(id(node.operation), 0) + 1
    pairs = {}
    for node in found:
        layer = node.operation
        after = takers.get(id(node.output_tensors[0]), [])
        if len(after) != 1 or not isinstance(layer, _FOLDABLE):
            continue
        if id(node.output_tensors[0]) in given:
            continue
        norm = after[0].operation
        rank = len(node.output_tensors[0].shape)
        if (
            type(norm) is keras.layers.BatchNormalization
            and count[id(layer)] == count[id(norm)] == 1
            and norm.axis in (-1, rank - 1)
            and has_last_axis(layer)
            and activation_name(layer.activation) == "linear"
        ):
            pairs[id(node)] = layer, norm
    return pairs


def _folded(layer, norm) -> tuple[keras.layers.Layer, list[np.ndarray]]:
    """A layer like it, and weights that normalize its output."""
    scale = 1 / np.sqrt(
        norm.moving_variance.numpy().astype(np.float64) + norm.epsilon
    )
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    *kernels, last = layer.get_weights()
    kernel, bias = last, 0.0
    if layer.use_bias:
        *kernels, kernel = kernels
        bias = last
    bias = (bias - norm.moving_mean.numpy()) * scale
    if norm.center:
        bias = bias + norm.beta.numpy()
    if isinstance(layer, DEPTHWISE):
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    elif isinstance(layer, TRANSPOSED):
        kernel = kernel * scale[:, np.newaxis]
    else:
        kernel = kernel * scale
    config = {**layer.get_config(), "use_bias": True}
    return type(layer).from_config(config), [*kernels, kernel, bias]


DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)

TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)

_FOLDABLE = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    *DEPTHWISE,
    *TRANSPOSED,
)


def has_last_axis(layer) -> bool:
    """Whether the channels of a layer are the last axis."""
    return getattr(layer, "data_format", None) != "channels_first"
