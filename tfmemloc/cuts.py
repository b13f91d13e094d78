"""Cutting a network in two at one tensor, so that its front runs only once.

A functional model is a list of nodes in the order of computation. Between two
nodes it can be cut where only one tensor (beside the example ids) is still
needed later: what lies before is the *prefix*, what lies behind the *suffix*,
and the suffix takes that tensor as its input. All parts share the layers, and
so the weights, of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from tfmemloc import surgery

_IDS = "example_id"


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A place where a model is cut.

    Attributes:
        place: number of nodes before it; 0 is the input.
        tensor: what crosses it.
        suffix: (tensor, example ids) -> logits; the model itself at place 0.
    """

    place: int
    tensor: keras.KerasTensor | None
    suffix: keras.Model


def cuts_before(
    model: keras.Model,
    parts: Mapping[str, Sequence[keras.layers.Layer]],
) -> dict[str, Cut]:
    """The last cut before each part of a model.

    Args:
        model: any Keras model. One whose graph is not known, or that cannot
            be cut, is cut at its input.
        parts: name -> layers.

    Returns:
        Name -> cut; parts with the same place share one.
    """
    at_input = Cut(0, None, model)
    nodes = _nodes(model)
    places = _single_tensor_places(model, nodes) if nodes else {}
    by_place: dict[int, Cut] = {0: at_input}
    result = {}
    for name, layers in parts.items():
        first = _first_use(nodes, layers)
        place = max((p for p in places if p <= first), default=0)
        if place not in by_place:
            tensor = places[place]
            suffix = _part(model, [tensor], nodes[place:], model.output)
            by_place[place] = Cut(place, tensor, suffix)
        result[name] = by_place[place]
    return result


def stages(
    model: keras.Model, cuts: Sequence[Cut]
) -> list[tuple[int, keras.Model]]:
    """The models that lead from each cut to the next, front to back.

    Args:
        model: that was cut.
        cuts: of `cuts_before`, in any order, repeated or not.

    Returns:
        (place that is reached, model from the place before).
    """
    if not any(cut.place for cut in cuts):
        return []
    nodes = _nodes(model)
    reached = 0
    start = [t for t in keras.tree.flatten(model.input) if t.name != _IDS]
    result = []
    for place, cut in sorted({cut.place: cut for cut in cuts}.items()):
        if place > 0:
            between = nodes[reached:place]
            result.append((place, _part(model, start, between, cut.tensor)))
            reached, start = place, [cut.tensor]
    return result


def _nodes(model: keras.Model) -> list:
    """The calls of layers in the order of computation; [] if not known."""
    by_depth = getattr(model, "_nodes_by_depth", None)
    if isinstance(model, keras.Sequential) or by_depth is None:
        return []
    return [
        node
        for depth in sorted(by_depth, reverse=True)
        for node in by_depth[depth]
        if not node.is_input
    ]


def _single_tensor_places(model, nodes) -> dict[int, keras.KerasTensor]:
    """Places where one tensor is still needed -> that tensor."""
    last_use: dict[int, int] = {}
    for place, node in enumerate(nodes):
        for tensor in node.input_tensors:
            last_use[id(tensor)] = place
    for tensor in keras.tree.flatten(model.output):
        last_use[id(tensor)] = len(nodes)
    places, live = {}, {}
    for tensor in keras.tree.flatten(model.input):
        if tensor.name != _IDS:
            live[id(tensor)] = tensor
    for place, node in enumerate(nodes):
        needed = [
            tensor
            for key, tensor in live.items()
            if last_use.get(key, -1) >= place
        ]
        # At place 0 the model itself is the suffix.
        if place > 0 and len(needed) == 1:
            places[place] = needed[0]
        live |= {id(tensor): tensor for tensor in node.output_tensors}
    return places


def _first_use(nodes, layers) -> int:
    """The place of the first node that calls one of the layers."""
    wanted = {id(layer) for layer in layers}
    for place, node in enumerate(nodes):
        operation = node.operation
        called = (
            surgery.flat_layers(operation)
            if isinstance(operation, keras.Model)
            else [operation]
        )
        if any(id(layer) in wanted for layer in called):
            return place
    return 0


def _part(model, start, nodes, end) -> keras.Model:
    """The part of `model` from the tensors `start` to `end`.

    It takes the example ids as well where one of its nodes uses them: Keras
    wants every input to be connected.
    """
    used = {id(tensor) for node in nodes for tensor in node.input_tensors}
    ids = [
        tensor
        for tensor in keras.tree.flatten(model.input)
        if tensor.name == _IDS and id(tensor) in used
    ]
    return keras.Model([*start, *ids], end)
