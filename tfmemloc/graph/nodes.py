"""The graph of a functional model: its nodes, and how to compute it anew.

A functional model is a list of *nodes*, calls of layers in the order of
computation. Between two nodes where only one tensor (beside the example ids)
is still needed, the model can be cut.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from tfmemloc.data.examples import IDS

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

    `model.input` of a Sequential model raises an error until it is called.
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
    model: keras.Model,
    found: Sequence[Node],
    *,
    beside_integers: bool = False,
) -> dict[int, keras.KerasTensor]:
    """Where a model can be cut: number of nodes before -> the tensor.

    Place 0, the input, is not among them. With `beside_integers`, inputs of
    integers, such as tokens and masks, may still be needed there.
    """
    last_use: dict[int, int] = {}
    for place, node in enumerate(found):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = place
    for tensor in keras.tree.flatten(outputs_of(model)):
        last_use[id(tensor)] = len(found)
    places, live = {}, {}
    for tensor in keras.tree.flatten(inputs_of(model)):
        is_integer = not keras.backend.is_float_dtype(tensor.dtype)
        if tensor.name != IDS and not (beside_integers and is_integer):
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
    """Gives a layer another `call`, and activation if given, within a context.

    They are written straight into `__dict__`, because Keras tracks attributes
    that are assigned in the ordinary way. The layer is as before when the
    context ends.
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
    """Whether its one output is probabilities; False if not known."""
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
