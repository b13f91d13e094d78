"""Cutting a network in two at one tensor, so that its front runs only once.

A model can be cut at the places of `graph.single_tensor_places`. The nodes
before the cut are the *prefix*, those after it the *suffix*, which takes the
one tensor as its input. Both share the layers, and so the weights, of the
model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import keras

from tfmemloc.graph.nodes import (
    IDS,
    inputs_of,
    nodes,
    outputs_of,
    single_tensor_places,
)
from tfmemloc.graph.rebuild import flat_layers


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
    found = nodes(model)
    places = single_tensor_places(model, found) if found else {}
    by_place: dict[int, Cut] = {0: at_input}
    result = {}
    for name, layers in parts.items():
        first = _first_use(found, layers)
        place = max((p for p in places if p <= first), default=0)
        if place not in by_place:
            tensor = places[place]
            suffix = _part(model, [tensor], found[place:], outputs_of(model))
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
    found = nodes(model)
    reached = 0
    start = [t for t in keras.tree.flatten(inputs_of(model)) if t.name != IDS]
    result = []
    for place, cut in sorted({cut.place: cut for cut in cuts}.items()):
        if place > 0:
            between = found[reached:place]
            result.append((place, _part(model, start, between, cut.tensor)))
            reached, start = place, [cut.tensor]
    return result


def _first_use(found, layers) -> int:
    """The place of the first node that calls one of the layers."""
    wanted = {id(layer) for layer in layers}
    for place, node in enumerate(found):
        operation = node.operation
        called = (
            flat_layers(operation)
            if isinstance(operation, keras.Model)
            else [operation]
        )
        if any(id(layer) in wanted for layer in called):
            return place
    return 0


def _part(model, start, between, end) -> keras.Model:
    """The part of `model` from the tensors `start` to `end`.

    It takes the example ids as well where one of its nodes uses them: Keras
    wants every input to be connected.
    """
    used = {id(tensor) for node in between for tensor in node.input_tensors}
    ids = [
        tensor
        for tensor in keras.tree.flatten(inputs_of(model))
        if tensor.name == IDS and id(tensor) in used
    ]
    return keras.Model([*start, *ids], end)
