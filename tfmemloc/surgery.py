"""The only editor of models. Nothing given is changed: edits make new models.

- `with_inference` makes tied layers behave otherwise at inference.
- `layer_groups` names the parts that the probes rewind, retrain and account.
- `swapped_weights` lends other values to variables and gives them back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.layers import ExampleTiedDropout

Groups = dict[str, tuple[keras.layers.Layer, ...]]


def tied_layers(model: keras.Model) -> list[ExampleTiedDropout]:
    """The example-tied layers of a model, input to output."""
    return [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, ExampleTiedDropout)
    ]


def flat_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model and of the models nested in it, each once."""
    found: dict[int, keras.layers.Layer] = {}

    def visit(layers):
        for layer in layers:
            if isinstance(layer, keras.Model):
                visit(layer.layers)
            else:
                found.setdefault(id(layer), layer)

    visit(model.layers)
    return list(found.values())


def with_inference(model: keras.Model, inference: str) -> keras.Model:
    """The same network with another behaviour of its tied layers.

    Args:
        model: a functional model with `ExampleTiedDropout` layers.
        inference: `"drop"`, `"expected"` or `"tied"`.

    Returns:
        A new functional model that shares all weights with `model`: training
        either trains both.

    Raises:
        ValueError: the model is not functional, or has no tied layer.

    Example:
        >>> tied = with_inference(model, "tied")
        >>> tied.predict({"image": x, "example_id": ids})
    """
    if not tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer, so that "
            f'its inference cannot become "{inference}". Expected a model '
            "with at least one tied layer."
        )

    def replace(layer):
        if isinstance(layer, ExampleTiedDropout):
            return ExampleTiedDropout.from_config(
                {**layer.get_config(), "inference": inference}
            )
        if isinstance(layer, keras.Model) and tied_layers(layer):
            return with_inference(layer, inference)
        return layer

    return _rebuild(model, replace)


def _rebuild(model, clone_function) -> keras.Model:
    """Clones the graph of a functional model, layer by layer."""
    if not graph.is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed {type(model).__name__}, "
            "whose graph is not known. Expected a functional or Sequential "
            "model. In a subclassed model make a second ExampleTiedDropout "
            "with the inference you want, and the same seed, and call that."
        )
    return keras.models.clone_model(model, clone_function=clone_function)


def with_own_batch_norm(
    model: keras.Model, *, collect: bool = False
) -> keras.Model:
    """A model that shares all layers with `model` but the BatchNorm ones.

    Args:
        model: a functional model.
        collect: the copies normalize by batch statistics whatever `training`
            is, and keep those of the last batch (momentum 0).
    """

    def replace(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer
        if collect:
            config = {**layer.get_config(), "momentum": 0.0}
            return _BatchStatistics.from_config(config)
        return type(layer).from_config(layer.get_config())

    copy = _rebuild(model, replace)
    copy.set_weights(model.get_weights())
    return copy


class _BatchStatistics(keras.layers.BatchNormalization):
    """BatchNorm in training mode, whatever the model's mode is."""

    def call(self, inputs, training=None, mask=None):
        """Normalizes by the statistics of this batch, and keeps them."""
        del training
        return super().call(inputs, training=True, mask=mask)


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
        if graph.is_normalization(layer):
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


@contextlib.contextmanager
def swapped_weights(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> Iterator[None]:
    """Lends `values` to `variables`; the old values come back bit for bit.

    Also when the body raises. Functions that were traced before see the lent
    values.

    Raises:
        ValueError: the numbers or the shapes of variables and values differ;
            nothing is changed then.
    """
    shapes = [tuple(variable.shape) for variable in variables]
    given = [np.shape(value) for value in values]
    if shapes != given:
        raise ValueError(
            f"Expected values of shapes {shapes}. Received: {given}."
        )
    kept = [variable.numpy() for variable in variables]
    try:
        assign_weights(variables, values)
        yield
    finally:
        assign_weights(variables, kept)


def assign_weights(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> None:
    """Sets variables, one by one; nothing is traced again."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
