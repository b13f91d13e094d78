"""Making a new functional model from the graph of another one."""

from __future__ import annotations

from typing import Any

import keras

from tfmemloc.graph.nodes import IDS, inputs_of, is_functional, replay


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


def compute_dtypes(model: keras.Model) -> set[str]:
    """The types in which the layers of a model compute."""
    found = {
        getattr(layer, "compute_dtype", None) for layer in flat_layers(model)
    }
    return found - {None}


def cloned(model, clone_function) -> keras.Model:
    """Clones the graph of a functional model, layer by layer."""
    if not is_functional(model):
        raise ValueError(
            f"Model '{model.name}' is a subclassed {type(model).__name__}, "
            "whose graph is not known. Expected a functional or Sequential "
            "model. In a subclassed model make a second ExampleTiedDropout "
            "with the inference you want, and the same seed, and call that."
        )
    return keras.models.clone_model(model, clone_function=clone_function)


def inlined(model: keras.Model) -> keras.Model:
    """The same network with its nested models flattened into one graph."""

    def call(node, args, kwargs):
        if is_functional(node.operation):
            return replay(node.operation, args[0], call)
        return node.operation(*args, **kwargs)

    inputs = fresh_inputs(model)
    return keras.Model(inputs, replay(model, inputs, call), name=model.name)


def fresh_inputs(model: keras.Model) -> Any:
    """New inputs like those of a model, in the same structure."""
    return keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
        inputs_of(model),
    )


def used_inputs(inputs: Any, outputs: Any) -> Any:
    """The inputs, without the example ids where no output depends on them.

    Where one input is left it stands alone.
    """
    needed = _ancestors(keras.tree.flatten(outputs))

    def is_used(tensor):
        return tensor.name != IDS or id(tensor) in needed

    if isinstance(inputs, dict):
        left = {key: t for key, t in inputs.items() if is_used(t)}
        return next(iter(left.values())) if len(left) == 1 else left
    if isinstance(inputs, list | tuple):
        return [t for t in inputs if is_used(t)]
    return inputs


def _ancestors(tensors) -> set[int]:
    """ids of all tensors from which these were computed."""
    seen: set[int] = set()
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        pending.extend(node.input_tensors)
    return seen
