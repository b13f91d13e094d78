"""Which pruning rule holds for a call of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.tied_dropout import ExampleTiedDropout
from tfmemloc.layers.unit_mask import UnitMask
from tfmemloc.models.factory import Logits
from tfmemloc.serving.folding import DEPTHWISE, TRANSPOSED, has_last_axis
from tfmemloc.serving.pruning_rules import (
    MIXING_ACTIVATIONS,
    Attention,
    Channelwise,
    Concatenation,
    Dense,
    Depthwise,
    Dropped,
    Embedding,
    Flattening,
    Grouped,
    Kernel,
    Named,
    Parameters,
    Product,
    Reshaping,
    Rule,
    Separable,
    Shifting,
    Sparse,
    Sum,
    Transposed,
    activation_name,
    channels_of,
)

_ZERO_AT_ZERO = (
    "relu",
    "relu6",
    "leaky_relu",
    "gelu",
    "silu",
    "swish",
    "elu",
    "selu",
    "tanh",
    "hard_swish",
    "hard_silu",
    "mish",
    "linear",
    "softsign",
)

_LAYER_RULES: Sequence[tuple[tuple[type, ...], type[Rule]]] = (
    ((ExampleTiedDropout, UnitMask), Dropped),
    ((SparseDropout,), Sparse),
    ((Logits,), Named),
    ((keras.layers.Dense,), Dense),
    (TRANSPOSED, Transposed),
    ((keras.layers.SeparableConv1D, keras.layers.SeparableConv2D), Separable),
    (DEPTHWISE, Depthwise),
    (
        (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
        Kernel,
    ),
    ((keras.layers.Embedding,), Embedding),
    ((keras.layers.MultiHeadAttention,), Attention),
    (
        (
            keras.layers.Add,
            keras.layers.Subtract,
            keras.layers.Average,
            keras.layers.Maximum,
            keras.layers.Minimum,
        ),
        Sum,
    ),
    ((keras.layers.Multiply,), Product),
    ((keras.layers.Concatenate,), Concatenation),
    ((keras.layers.Flatten,), Flattening),
    ((keras.layers.Reshape,), Reshaping),
    ((keras.layers.BatchNormalization, keras.layers.PReLU), Parameters),
    (
        (
            keras.layers.ReLU,
            keras.layers.LeakyReLU,
            keras.layers.ELU,
            keras.layers.Dropout,
            keras.layers.SpatialDropout1D,
            keras.layers.SpatialDropout2D,
            keras.layers.SpatialDropout3D,
            keras.layers.GaussianNoise,
            keras.layers.GaussianDropout,
            keras.layers.Identity,
            keras.layers.MaxPooling1D,
            keras.layers.MaxPooling2D,
            keras.layers.MaxPooling3D,
            keras.layers.AveragePooling1D,
            keras.layers.AveragePooling2D,
            keras.layers.AveragePooling3D,
            keras.layers.GlobalMaxPooling1D,
            keras.layers.GlobalMaxPooling2D,
            keras.layers.GlobalMaxPooling3D,
            keras.layers.GlobalAveragePooling1D,
            keras.layers.GlobalAveragePooling2D,
            keras.layers.GlobalAveragePooling3D,
            keras.layers.UpSampling1D,
            keras.layers.UpSampling2D,
            keras.layers.UpSampling3D,
            keras.layers.ZeroPadding1D,
            keras.layers.ZeroPadding2D,
            keras.layers.ZeroPadding3D,
            keras.layers.Cropping1D,
            keras.layers.Cropping2D,
            keras.layers.Cropping3D,
        ),
        Channelwise,
    ),
)


def rule_of(node, uses: int) -> Rule:
    """The rule of a call; `uses` is how often its layer is called."""
    layer = node.operation
    is_layer = isinstance(layer, keras.layers.Layer)
    if uses > 1 and is_layer and layer.weights:
        return Rule(node)  # Its calls would have to agree.
    if not has_last_axis(layer) or len(node.output_tensors) != 1:
        return Rule(node)
    if not is_layer:
        return _operation_rule(node)
    if isinstance(layer, keras.layers.Activation):
        return _activation_rule(layer.activation)(node)
    if isinstance(layer, keras.layers.Rescaling):
        return _rescaling_rule(layer)(node)
    if type(layer).__name__ == "LayerScale":
        return Parameters(node)
    kind = next(
        (rule for types, rule in _LAYER_RULES if isinstance(layer, types)),
        Rule,
    )
    if kind is Kernel and layer.groups > 1:
        kind = Grouped
    rule = kind(node)
    return rule if _fits(rule, node) else Rule(node)


def _fits(rule: Rule, node) -> bool:
    """Whether the shapes of a call are those that its rule expects."""
    layer, inputs = node.operation, node.input_tensors
    rank = len(inputs[0].shape)
    if isinstance(rule, Dropped):
        return (
            getattr(layer, "axis", -1) in (-1, rank - 1)
            and getattr(layer, "inference", "drop") == "drop"
        )
    if isinstance(rule, Concatenation):
        return layer.axis in (-1, rank - 1)
    if isinstance(rule, Sum):
        return len(set(rule.inputs)) == 1
    if isinstance(rule, Flattening):
        return None not in inputs[0].shape[1:]
    if isinstance(rule, Reshaping):
        return inputs[0].shape[-1] == node.output_tensors[0].shape[-1]
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.axis in (-1, rank - 1)
    if isinstance(layer, keras.layers.PReLU):
        return len(layer.alpha.shape) == rank - 1
    return True


def _activation_rule(function) -> type[Rule]:
    name = activation_name(function)
    if name in MIXING_ACTIVATIONS:
        return Rule
    known = name in _ZERO_AT_ZERO
    return Channelwise if known else Shifting


def _rescaling_rule(layer) -> type[Rule]:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        return Rule
    return Shifting if layer.offset else Channelwise


_SUM_OPERATIONS = ("Add", "Subtract", "Maximum", "Minimum")


def _operation_rule(node) -> Rule:
    """keras.ops functions, and operators such as x + y."""
    name = type(node.operation).__name__
    tensors = node.input_tensors
    ranks = {len(t.shape) for t in tensors}
    same = len({channels_of(t) for t in tensors}) == 1 and len(ranks) == 1
    if len(tensors) == 1:
        args, kwargs = node.arguments.args, node.arguments.kwargs
        plain = all(
            a is tensors[0] or isinstance(a, int | float | None)
            for a in (*args, *kwargs.values())
        )
        if graph.is_activation(node.operation):
            keeps = name in ("Relu", "Relu6", "Gelu", "Silu", "Tanh", "Elu")
            return (Channelwise if keeps else Shifting)(node)
        if plain and name in ("Multiply", "TrueDivide", "Negative"):
            return Channelwise(node)
        if plain and name in _SUM_OPERATIONS:
            return Shifting(node)
    elif same and name in _SUM_OPERATIONS:
        return Sum(node)
    elif same and name == "Multiply":
        return Product(node)
    return Rule(node)
