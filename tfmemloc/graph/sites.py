"""Finds the outputs of a model's units, and the ends of its blocks.

A *unit* is an output channel of a layer with a kernel (dense, convolution,
...). A *block* is the part of a model between two places where it can be cut,
if a layer with a kernel is in it: a convolution with its normalization and
activation, a residual block, half of a transformer block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import keras

from tfmemloc.graph.nodes import (
    Node,
    consumers,
    nodes,
    outputs_of,
    single_tensor_places,
)

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.SpectralNormalization,
)

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
)

# Activations that were called as functions, such as keras.ops.relu(x).
_ACTIVATION_OPERATIONS = (
    "Relu",
    "Relu6",
    "Gelu",
    "Silu",
    "Swish",
    "Elu",
    "Selu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSilu",
    "HardSwish",
    "Softplus",
    "Mish",
)


def has_units(operation) -> bool:
    """Whether a layer, or one inside of it, has a kernel."""
    return isinstance(operation, keras.layers.Layer) and any(
        hasattr(layer, "kernel") or hasattr(layer, "pointwise_kernel")
        for layer in operation._flatten_layers()
    )


def unit_axis(layer) -> int:
    """The axis of a layer's units: -1, or 1 where channels come first."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else -1


def is_normalization(operation) -> bool:
    """Whether it normalizes and keeps the units apart."""
    return isinstance(operation, NORMALIZATIONS)


def is_activation(operation) -> bool:
    """Whether it is an activation, which acts on each number by itself."""
    return (
        isinstance(operation, _ACTIVATIONS)
        or type(operation).__name__ in _ACTIVATION_OPERATIONS
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A place in a graph where units come out.

    Attributes:
        name: of the layer whose units they are, or of the block's last layer.
        node: the call whose output they are.
        axis: of the units.
        units: how many.
    """

    name: str
    node: Node
    axis: int
    units: int

    @property
    def tensor(self) -> keras.KerasTensor:
        """The units' tensor."""
        return self.node.output_tensors[0]


def unit_sites(model: keras.Model, *, after: bool = True) -> list[Site]:
    """Where the units of each layer with a kernel come out.

    A layer that no other layer with a kernel follows makes the logits, not
    units.

    Args:
        model: functional or Sequential; layers of nested models count.
        after: take the output after the normalizations and activations that
            follow the layer; False takes the layer's own output.

    Returns:
        In the order of computation. A layer that is called several times has
        several sites.
    """
    return list(_unit_sites(model, after, {}))


def _unit_sites(
    model, after: bool, leads: Mapping[int, bool]
) -> Iterator[Site]:
    found = nodes(model)
    leads = _leads_to_units(found, leads)
    takers = consumers(found)
    for node in found:
        layer = node.operation
        if not any(leads.get(id(t)) for t in node.output_tensors):
            continue
        if isinstance(layer, keras.Model):
            inner = {
                id(tensor): True
                for tensor in keras.tree.flatten(outputs_of(layer))
            }
            yield from _unit_sites(layer, after, inner)
        elif has_units(layer):
            end = _follow(node, takers) if after else node
            yield _site(layer.name, end, unit_axis(layer))


def _leads_to_units(found, leads: Mapping[int, bool]) -> dict[int, bool]:
    """id of a tensor -> whether a layer with a kernel comes after it."""
    result = dict(leads)
    for node in reversed(found):
        onward = (
            has_units(node.operation)
            or _is_reversed_embedding(node)
            or any(result.get(id(t)) for t in node.output_tensors)
        )
        if onward:
            result |= {id(tensor): True for tensor in node.input_tensors}
    return result


def _is_reversed_embedding(node) -> bool:
    """Whether a table of tokens makes logits out of units."""
    return hasattr(node.operation, "embeddings") and any(
        keras.backend.is_float_dtype(t.dtype) for t in node.input_tensors
    )


def _follow(node, takers) -> Node:
    """The last of the normalizations and activations behind a node."""
    while True:
        after = takers.get(id(node.output_tensors[0]), [])
        if len(after) != 1:
            return node
        operation = after[0].operation
        if not (is_normalization(operation) or is_activation(operation)):
            return node
        node = after[0]


def _site(name: str, node, axis: int) -> Site:
    return Site(name, node, axis, int(node.output_tensors[0].shape[axis]))


def block_sites(model: keras.Model) -> list[Site]:
    """The ends of the blocks of a model, input to output.

    What only scales a block's units (squeeze and excitation) belongs to that
    block. The last block, that makes the logits, is not among them.

    Args:
        model: functional or Sequential; the blocks of a nested one, such as a
            pretrained backbone, are found inside of it.
    """
    return _block_sites(model, {})


def _block_sites(model, leads: Mapping[int, bool]) -> list[Site]:
    """As `block_sites`; `leads` as in `_leads_to_units`."""
    found = nodes(model)
    leads = _leads_to_units(found, leads)
    takers = consumers(found)
    # Behind the last place is the output, which ends a block only where the
    # model is nested and kernels follow.
    places = sorted(single_tensor_places(model, found, beside_integers=True))
    if len(keras.tree.flatten(outputs_of(model))) == 1:
        places.append(len(found))
    ends: list[Site] = []
    begin = 0
    for place in places:
        segment, begin = found[begin:place], place
        kernels = [n.operation for n in segment if has_units(n.operation)]
        if not kernels:
            continue
        end = _follow(segment[-1], takers)
        if not leads.get(id(end.output_tensors[0])):
            continue
        inner = _inner_sites(kernels)
        if inner:
            ends.extend(inner)
            continue
        if ends and isinstance(end.operation, keras.layers.Multiply):
            ends.pop()
        ends.append(_site(end.operation.name, end, unit_axis(kernels[-1])))
    return ends


def _inner_sites(kernels: Sequence) -> list[Site]:
    """The ends of blocks inside of a nested model that is all of a segment."""
    if len(kernels) != 1 or not isinstance(kernels[0], keras.Model):
        return []
    (inner,) = kernels
    outputs = keras.tree.flatten(outputs_of(inner)) if nodes(inner) else []
    return _block_sites(inner, {id(t): True for t in outputs})
