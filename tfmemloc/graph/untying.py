"""Takes tied layers and added memory out of models again."""

from __future__ import annotations

import keras

from tfmemloc.graph.batch_norm import keeps_own_statistics, ordinary
from tfmemloc.graph.nodes import replay
from tfmemloc.graph.rebuild import fresh_inputs, used_inputs
from tfmemloc.graph.sites import has_units
from tfmemloc.graph.tying import tied_layers
from tfmemloc.layers.switchable_batch_norm import SwitchableBatchNormalization
from tfmemloc.layers.tied_dropout import ExampleTiedDropout


def untie(model: keras.Model) -> keras.Model:
    """Takes the tied layers out of a model; the inverse of `tie_dropout`.

    Returns:
        A new functional model that shares all weights with `model`, without
        the `example_id` input where nothing else uses it. Where units were
        carved, it behaves as the tied one would with all units on; where the
        network was expanded, it is the network of before.

    Raises:
        ValueError: the graph is not known, or there are no tied layers.

    Example:
        >>> plain = untie(with_inference(model, "drop"))
        >>> plain.count_params() == model.count_params()
        True
    """
    if not tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer to take "
            "out. Expected a model from `tie_dropout`."
        )

    def without_tied(node, args, kwargs):
        if isinstance(node.operation, ExampleTiedDropout):
            return args[0]
        return None

    return _replaced(served_network(model), without_tied)


def served_network(model: keras.Model) -> keras.Model:
    """What is served of a network with its memorization units off.

    What it was expanded by is gone, and BatchNorm is the ordinary layer, with
    the statistics of the drop; all variables are shared. Units that were
    carved are still there, behind their tied layers.
    """
    model = without_memory_branches(model)
    if not keeps_own_statistics(model):
        return model
    made: dict[int, keras.layers.Layer] = {}

    def with_ordinary_norm(node, args, kwargs):
        operation = node.operation
        if not isinstance(operation, SwitchableBatchNormalization):
            return None
        if id(operation) not in made:
            made[id(operation)] = ordinary(operation)
        return made[id(operation)](args[0])

    return _replaced(model, with_ordinary_norm)


def without_memory_branches(model: keras.Model) -> keras.Model:
    """The network that was expanded, before it was; the same layers.

    What is carved out of a network's own units stays as it is.
    """
    if not any(layer.p_gen == 0 for layer in tied_layers(model)):
        return model

    def without_branch(node, args, kwargs):
        if not isinstance(node.operation, keras.layers.Add):
            return None
        pairs = zip(node.input_tensors, keras.tree.flatten(args), strict=True)
        kept = [new for old, new in pairs if not _is_recalled(old)]
        return kept[0] if len(kept) == 1 else None

    return _replaced(model, without_branch)


def gated_names(tied: keras.Model) -> tuple[str, ...]:
    """Names of the layers that hold a network's units at its tied places.

    The tied layers; and where a place was expanded, before its tied layer the
    one whose units generalize there.
    """
    names = []
    for layer in tied_layers(tied):
        if layer.p_gen == 0:
            names.append(_expanded(layer))
        names.append(layer.name)
    return tuple(dict.fromkeys(names))


def _expanded(layer: ExampleTiedDropout) -> str:
    """The name of the layer whose units a tied layer's memory expands."""
    tensor = layer._inbound_nodes[0].input_tensors[0]
    while True:
        history = tensor._keras_history
        operation = history.operation
        tensor = operation._inbound_nodes[history.node_index].input_tensors[0]
        if has_units(operation):  # The layer that makes the memory's units.
            return tensor._keras_history.operation.name


def memory_variables(model: keras.Model) -> list[keras.Variable]:
    """The trainable variables that a network was expanded by."""
    given = without_memory_branches(model).trainable_variables
    known = {id(variable) for variable in given}
    return [v for v in model.trainable_variables if id(v) not in known]


def _is_recalled(tensor) -> bool:
    """Whether a tensor comes of memorization units alone, by a linear map."""
    history = tensor._keras_history
    operation = history.operation
    if isinstance(operation, ExampleTiedDropout):
        return operation.p_gen == 0
    if not isinstance(operation, keras.layers.Dense) or operation.use_bias:
        return False
    node = operation._inbound_nodes[history.node_index]
    return _is_recalled(node.input_tensors[0])


def _replaced(model: keras.Model, replace) -> keras.Model:
    """A model with the same layers, some calls of which are left out.

    Args:
        model: functional.
        replace: (node, args, kwargs) -> what stands for the call's output, or
            None where the call stays.
    """

    def call(node, args, kwargs):
        operation = node.operation
        if isinstance(operation, keras.Model) and tied_layers(operation):
            return replay(operation, args[0], call)
        output = replace(node, args, kwargs)
        return operation(*args, **kwargs) if output is None else output

    inputs = fresh_inputs(model)
    outputs = replay(model, inputs, call)
    return keras.Model(used_inputs(inputs, outputs), outputs, name=model.name)
