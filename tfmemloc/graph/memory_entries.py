"""Which entries of a network's weights serve its memorization units alone.

    of an expanded network    the variables that it was expanded by
    of a hidden layer         the columns of its kernel and bias that make the
                              memorization units, what scales them on the way,
                              and the rows that read them

With the memorization units off, none of these entries has an effect: so
nothing else may read what is on the way, nor may it be an output.
"""

from __future__ import annotations

import keras
import numpy as np

from tfmemloc.graph.nodes import consumers, nodes, outputs_of
from tfmemloc.graph.sites import has_units, is_activation
from tfmemloc.graph.tying import tied_layers
from tfmemloc.graph.untying import memory_variables

_BY_UNIT = (
    keras.layers.AveragePooling2D,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.MaxPooling2D,
)


def memory_entries(model: keras.Model) -> list[np.ndarray]:
    """For each trainable variable, which entries are memory's: bool arrays.

    Raises:
        ValueError: there are no tied layers, or the units of one are read by
            something else than kernels; says by what.
    """
    tied = tied_layers(model)
    if not tied:
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer. Expected "
            "one that was tied, whose memory has weights."
        )
    expanded = {id(variable) for variable in memory_variables(model)}
    entries = {
        id(variable): np.full(variable.shape, id(variable) in expanded)
        for variable in model.trainable_variables
    }
    found = nodes(model)
    readers = _readers(model, found)
    for node in found:
        layer = node.operation
        if layer in tied and layer.p_gen:
            start = layer.generalization_units
            _mark_made(model, found, readers, node, start, entries)
            _mark_read(model, readers, node, start, entries)
    return [entries[id(v)] for v in model.trainable_variables]


def _readers(model, found) -> dict[int, list]:
    """id of a tensor -> the nodes that read it; None where it is an output."""
    readers = {key: list(nodes) for key, nodes in consumers(found).items()}
    for tensor in keras.tree.flatten(outputs_of(model)):
        readers.setdefault(id(tensor), []).append(None)
    return readers


def _mark_made(model, found, readers, node, start: int, entries) -> None:
    """Marks what makes the units of a tied layer: columns."""
    makers = {id(t): n for n in found for t in n.output_tensors}
    tensor = node.input_tensors[0]
    while True:
        others = [n for n in readers[id(tensor)] if n is not node]
        if others:
            raise _refusal(model, getattr(others[0], "operation", None))
        node = makers.get(id(tensor))
        operation = getattr(node, "operation", None)
        if node is None or not (_keeps_units(operation) or _mixes(operation)):
            raise _refusal(model, operation)
        for variable in getattr(operation, "trainable_variables", ()):
            entries[id(variable)][..., start:] = True
        if _mixes(operation):
            return
        tensor = node.input_tensors[0]


def _mark_read(model, readers, node, start: int, entries) -> None:
    """Marks what reads the units of a tied layer: rows of kernels."""
    for reader in readers.get(id(node.output_tensors[0]), ()):
        operation = getattr(reader, "operation", None)
        if _mixes(operation):
            entries[id(operation.kernel)][..., start:, :] = True
        elif _keeps_units(operation):
            for variable in operation.trainable_variables:
                entries[id(variable)][..., start:] = True
            _mark_read(model, readers, reader, start, entries)
        else:
            raise _refusal(model, operation)


def _mixes(operation) -> bool:
    """A layer with one kernel [..., inputs, units]."""
    return isinstance(
        operation,
        keras.layers.Dense | keras.layers.Conv1D | keras.layers.Conv2D,
    ) and (getattr(operation, "groups", 1) == 1 and has_units(operation))


def _keeps_units(operation) -> bool:
    """A layer that acts on each unit by itself."""
    return is_activation(operation) or isinstance(operation, _BY_UNIT)


def _refusal(model, operation) -> ValueError:
    reader = (
        "are an input or an output of it"
        if operation is None
        else f"are read by '{operation.name}' ({type(operation).__name__})"
    )
    return ValueError(
        f"The memorization units of model '{model.name}', or what they are "
        f"made of, {reader}, so that no weights are theirs alone. Expected "
        "units between two kernels that nothing else reads, as in a "
        "transformer's MLP, or an expanded network: ModelConfig(expand=...) "
        "or tie_dropout(model, expand=...)."
    )
