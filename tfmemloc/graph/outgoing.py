"""The outgoing weights of units: what reads a unit's output.

From the place where a unit is, its channel is followed through layers that
keep channels apart (activations, pooling, normalizations, sums) to the next
kernels. The rows of these kernels that read it are its outgoing weights. A
kernel behind a sum is read by the units of both sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc.graph.nodes import Node, consumers, nodes
from tfmemloc.graph.sites import (
    NORMALIZATIONS,
    Site,
    has_units,
    is_activation,
)
from tfmemloc.layers.tied_dropout import ExampleTiedDropout

# A kernel, and for each of its input rows the unit that it reads, or -1.
Reader = tuple[keras.Variable, np.ndarray]

_KEEP = (
    *NORMALIZATIONS,
    ExampleTiedDropout,
    keras.layers.Add,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.ZeroPadding2D,
)
_READ = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)


def readers_of(model: keras.Model, site: Site) -> list[Reader] | None:
    """The kernels that read the units of a site; None where not all are known.

    Args:
        model: functional; the site stands in it, not in a nested model.
        site: with its units on the last axis.
    """
    found = nodes(model)
    if site.axis not in (-1, len(site.node.outputs[0].shape) - 1):
        return None
    start = site.node.output_tensors[0]
    known = {id(start): np.arange(site.units)}
    result: list[Reader] = []
    readers = consumers(found)
    pending = [start]
    while pending:
        tensor = pending.pop()
        units = known[id(tensor)]
        for node in readers.get(id(tensor), ()):
            operation = node.operation
            if isinstance(operation, _READ) and has_units(operation):
                if getattr(operation, "groups", 1) != 1:
                    return None
                if all(kernel is not operation.kernel for kernel, _ in result):
                    result.append((operation.kernel, units))
                continue
            behind = _behind(node, units)
            if behind is None:
                return None
            output = node.output_tensors[0]
            if id(output) not in known:
                known[id(output)] = behind
                pending.append(output)
    return result or None


def _behind(node: Node, units: np.ndarray) -> np.ndarray | None:
    """The unit of each channel behind a layer; None where they mix."""
    operation = node.operation
    if isinstance(operation, keras.layers.Flatten):
        before = node.input_tensors[0].shape[1:]
        return np.tile(units, int(np.prod(before[:-1])))
    if is_activation(operation) or isinstance(operation, _KEEP):
        return units
    return None


def rows_of(
    readers: Sequence[Reader], chosen: np.ndarray
) -> dict[int, np.ndarray]:
    """Which entries of kernels are outgoing weights of the chosen units.

    Args:
        readers: of one site.
        chosen: bool [units].

    Returns:
        id of a kernel -> bool, of its shape.
    """
    result = {}
    for kernel, units in readers:
        rows = np.where(units >= 0, chosen[units], False)
        entries = np.zeros(kernel.shape, bool)
        entries[..., rows, :] = True
        result[id(kernel)] = entries
    return result
