"""Reading the graph of a functional model: units, and the ends of blocks.

A functional model is a list of *nodes*, calls of layers in the order of
computation. A *unit* is an output channel of a layer with a kernel (dense,
convolution, ...). Between two nodes where one tensor alone (beside the example
ids) is still needed the model can be cut; what lies between two such places
and has a kernel in it is a *block*: a convolution with its normalization and
activation, a residual block, half a transformer block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

IDS = "example_id"

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

Node = Any  # Keras has no public name for it.


def is_functional(model: Any) -> bool:
    """Whether it is a model whose graph is known: functional or Sequential."""
    return isinstance(model, keras.Model) and bool(nodes(model))


def nodes(model: keras.Model) -> list[Node]:
    """The calls of layers in the order of computation; [] if not known."""
    by_depth = getattr(_as_functional(model), "_nodes_by_depth", None)
    if by_depth is None:
        return []
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def inputs_of(model: keras.Model) -> Any:
    """The input tensors of a functional model, in its structure.

    A Sequential model's own `input` fails before it was called.
    """
    return _as_functional(model).input


def outputs_of(model: keras.Model) -> Any:
    """The output tensors of a functional model, in its structure."""
    return _as_functional(model).output


def _as_functional(model):
    is_sequential = isinstance(model, keras.Sequential)
    return getattr(model, "_functional", None) if is_sequential else model


def all_nodes(model: keras.Model) -> list[Node]:
    """The nodes of a model and of the models nested in it."""
    found = nodes(model)
    return [
        inner
        for node in found
        for inner in (
            node,
            *(
                all_nodes(node.operation)
                if isinstance(node.operation, keras.Model)
                else ()
            ),
        )
    ]


def consumers(found: Sequence[Node]) -> dict[int, list[Node]]:
    """id of a tensor -> the nodes that take it."""
    result: dict[int, list[Node]] = {}
    for node in found:
        for tensor in node.input_tensors:
            result.setdefault(id(tensor), []).append(node)
    return result


def single_tensor_places(
    model: keras.Model, found: Sequence[Node]
) -> dict[int, keras.KerasTensor]:
    """Where a model can be cut: number of nodes before -> the tensor.

    Place 0, the input, is not among them.
    """
    last_use: dict[int, int] = {}
    for place, node in enumerate(found):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = place
    for tensor in keras.tree.flatten(outputs_of(model)):
        last_use[id(tensor)] = len(found)
    places, live = {}, {}
    for tensor in keras.tree.flatten(inputs_of(model)):
        if tensor.name != IDS:
            live[id(tensor)] = tensor
    for place, node in enumerate(found):
        needed = [
            tensor
            for key, tensor in live.items()
            if last_use.get(key, -1) >= place
        ]
        if place > 0 and len(needed) == 1:
            places[place] = needed[0]
        live |= {id(tensor): tensor for tensor in node.output_tensors}
    return places


def replay(
    model: keras.Model,
    inputs: Any,
    call: Callable[[Node, tuple, dict[str, Any]], Any],
) -> Any:
    """Computes the graph of a model anew, on other tensors.

    Args:
        model: functional or Sequential.
        inputs: in the structure of `inputs_of(model)`.
        call: (node, args, kwargs) -> outputs in the place of the node's.

    Returns:
        In the structure of `outputs_of(model)`.
    """
    known = {
        id(old): new
        for old, new in zip(
            keras.tree.flatten(inputs_of(model)),
            keras.tree.flatten(inputs),
            strict=True,
        )
    }
    for node in nodes(model):
        args, kwargs = node.arguments.fill_in(known)
        outputs = keras.tree.flatten(call(node, args, kwargs))
        for old, new in zip(node.output_tensors, outputs, strict=True):
            known[id(old)] = new
    return keras.tree.map_structure(lambda t: known[id(t)], outputs_of(model))


@contextlib.contextmanager
def intercepted(
    operation: Any, call: Callable, activation: Callable | None = None
) -> Iterator[None]:
    """Within, a layer has another `call`, and another activation if given.

    Written straight into `__dict__`: Keras would track what is assigned by
    name. The layer is as before when the context ends.
    """
    attributes = vars(operation)
    own = attributes.get("activation")
    attributes["call"] = call
    if activation is not None:
        attributes["activation"] = activation
    try:
        yield
    finally:
        del attributes["call"]
        if activation is not None:
            attributes["activation"] = own


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether its one output are probabilities; False if not known."""
    found = nodes(model)
    outputs = keras.tree.flatten(outputs_of(model)) if found else []
    if len(outputs) != 1:
        return False
    last = next(
        node.operation
        for node in reversed(found)
        if any(tensor is outputs[0] for tensor in node.output_tensors)
    )
    if isinstance(last, keras.Model):
        return ends_in_softmax(last)
    # The layer, or the operation of `keras.ops.softmax`.
    return (
        type(last).__name__ == "Softmax"
        or getattr(last, "activation", None) is keras.activations.softmax
    )


def has_units(operation) -> bool:
    """Whether a layer has a kernel, or is a model with such layers."""
    if isinstance(operation, keras.Model):
        return any(has_units(layer) for layer in operation.layers)
    return isinstance(operation, keras.layers.Layer) and (
        hasattr(operation, "kernel")
        or hasattr(operation, "pointwise_kernel")
        or isinstance(operation, keras.layers.MultiHeadAttention)
    )


def unit_axis(layer) -> int:
    """The axis of a layer's units: -1, or 1 where channels come first."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else -1


def is_normalization(operation) -> bool:
    """Whether it normalizes and keeps the units apart."""
    return isinstance(operation, NORMALIZATIONS)


def is_activation(operation) -> bool:
    """Whether it is a function of each number alone."""
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

    Layers behind which no other has a kernel make the logits, not units.

    Args:
        model: functional or Sequential; layers of nested ones count.
        after: normalizations and activations that follow; else directly at
            the layer.

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
        onward = has_units(node.operation) or any(
            result.get(id(t)) for t in node.output_tensors
        )
        if onward:
            result |= {id(tensor): True for tensor in node.input_tensors}
    return result


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
        model: functional or Sequential; nested ones count as one layer.
    """
    found = nodes(model)
    leads = _leads_to_units(found, {})
    takers = consumers(found)
    # After the last place there is the output, which ends nothing.
    places = sorted(single_tensor_places(model, found))
    ends: list[Site] = []
    begin = 0
    for place in places:
        segment, begin = found[begin:place], place
        kernels = [n.operation for n in segment if has_units(n.operation)]
        end = _follow(segment[-1], takers)
        if not kernels or not leads.get(id(end.output_tensors[0])):
            continue
        if ends and isinstance(end.operation, keras.layers.Multiply):
            ends.pop()
        ends.append(_site(end.operation.name, end, unit_axis(kernels[-1])))
    return ends


def activation_bytes(model: keras.Model) -> int:
    """Bytes of all outputs of layers for one example, in float32.

    Sizes that are not known count as 1.
    """
    total = 0
    for node in nodes(model):
        if isinstance(node.operation, keras.Model):
            total += activation_bytes(node.operation)
        for tensor in node.output_tensors:
            total += 4 * math.prod(size or 1 for size in tensor.shape[1:])
    return total
