"""Layer groups: the parts of a model that the probes rewind and retrain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import keras

from tfmemloc.graph.rebuild import flat_layers
from tfmemloc.graph.sites import is_normalization

Groups = dict[str, tuple[keras.layers.Layer, ...]]


def layer_groups(
    model: keras.Model, groups: Mapping[str, Sequence[str]] | None = None
) -> Groups:
    """The layer groups of a model, input to output (paper, section 4).

    A group is a layer with weights together with the normalization that
    follows it. In models whose layers are all named `<group>.<role>`, as
    tfmemloc's own are, the part before the dot is the group.

    Args:
        model: any built Keras model.
        groups: names of groups -> names of their layers, to choose otherwise.

    Returns:
        Ordered names -> layers. Every weight of the model is in one group.

    Raises:
        ValueError: the model has no weights; or `groups` names a layer that
            does not exist, names one twice, leaves one out, or has a group
            without weights.

    Example:
        >>> list(layer_groups(model))[:3]
        ['conv1', 'conv2', 'dense1']
    """
    layers = [layer for layer in flat_layers(model) if layer.weights]
    if not layers:
        raise ValueError(
            f"Model '{model.name}' has no layer with weights. Expected a "
            "built model with at least one."
        )
    if groups is not None:
        return _checked_groups(model, layers, groups)
    if all("." in layer.name for layer in layers):
        return _grouped(
            (layer.name.split(".", maxsplit=1)[0], layer) for layer in layers
        )
    return _grouped(_graph_groups(layers))


def _graph_groups(layers) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Pairs (group, layer): a normalization goes with what it normalizes."""
    group = None
    owner: dict[int, str] = {}
    for layer in layers:
        if is_normalization(layer):
            source = _source_with_weights(layer, owner)
            group = source or group or layer.name
        else:
            group = layer.name
        owner[id(layer)] = group
        yield group, layer


def _source_with_weights(layer, owner: dict[int, str]) -> str | None:
    """The group of the nearest layer before `layer` that has one."""
    while layer is not None and layer._inbound_nodes:
        parents = layer._inbound_nodes[0].parent_nodes
        if len(parents) != 1:
            return None
        layer = parents[0].operation
        if id(layer) in owner:
            return owner[id(layer)]
    return None


def _grouped(pairs) -> Groups:
    groups: dict[str, list] = {}
    for name, layer in pairs:
        groups.setdefault(name, []).append(layer)
    return {name: tuple(layers) for name, layers in groups.items()}


def _checked_groups(model, layers, groups) -> Groups:
    by_name = {layer.name: layer for layer in layers}
    all_names = {layer.name for layer in flat_layers(model)}
    choices = f"Layers with weights: {', '.join(by_name)}."
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name not in all_names:
                raise ValueError(
                    f"Group {group!r} names the layer {name!r}, which model "
                    f"'{model.name}' does not have. {choices}"
                )
            if name in seen:
                raise ValueError(
                    f"Layer {name!r} is in two groups, {seen[name]!r} and "
                    f"{group!r}. Expected each in one. {choices}"
                )
            seen[name] = group
        if not any(name in by_name for name in names):
            raise ValueError(
                f"Group {group!r} has no weights: it names "
                f"{', '.join(names) or 'no layer'}. {choices}"
            )
    left_out = [name for name in by_name if name not in seen]
    if left_out:
        raise ValueError(
            f"No group names the layers {', '.join(left_out)}. Expected each "
            "layer with weights in one group."
        )
    return {
        group: tuple(by_name[name] for name in names if name in by_name)
        for group, names in groups.items()
    }


def group_variables(
    groups: Groups, *, trainable_only: bool = False
) -> dict[str, list[keras.Variable]]:
    """The variables of each group, each once.

    Args:
        groups: from `layer_groups`.
        trainable_only: leave out the statistics of normalizations.
    """
    return {
        name: [
            variable
            for layer in layers
            for variable in (
                layer.trainable_variables if trainable_only else layer.weights
            )
        ]
        for name, layers in groups.items()
    }
