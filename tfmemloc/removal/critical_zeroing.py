"""The critical units of the examples to forget become 0, all at once.

The union of the sets that `find_critical_units` finds for each of them. A unit
becomes 0 where it comes out: through the scale and offset of the normalization
behind its kernel, or the kernel and bias themselves; the activation behind must
give 0 for 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.data.examples import Examples
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.removal.forgetting import removed
from tfmemloc.removal.outcome import Removal
from tfmemloc.snapshots import Source
from tfmemloc.units import SearchConfig


def zero_critical_units(
    source: Source,
    examples: Examples,
    config: SearchConfig = SearchConfig(),
    *,
    forget: Sequence[int],
) -> tuple[keras.Model, Removal]:
    """Zeroes every unit that is critical for an example to forget.

    Args:
        source: a run or a functional model; it is not changed.
        examples: those that it was trained on.
        config: of the search; its `ids` are those to forget.
        forget: ids of the training examples to forget.

    Raises:
        ValueError: an id is not a training example's, or a unit cannot become
            0 (its activation does not give 0 for 0).

    Example:
        >>> ids = examples.of_subset("noisy").example_id[:4]
        >>> _, result = zero_critical_units(model, examples, forget=ids)
        >>> result.method
        'critical units'
    """

    def zero(original, model, forgotten, retained):
        del retained
        ids = tuple(forgotten.example_id.tolist())
        of_them = dataclasses.replace(config, ids=ids, place="unit")
        for name, units in critical_union(original, examples, of_them).items():
            _zero(model, name, units)

    return removed(source, examples, forget, zero, method="critical units")


def critical_union(
    model: keras.Model, examples: Examples, config: SearchConfig
) -> dict[str, np.ndarray]:
    """Name of a layer -> the units of it that are critical for any example."""
    found = find_critical_units(model, examples, config, progress=False)
    units = np.unique(found.units[found.critical])
    layer = found.layer_of(units)
    starts = np.concatenate([[0], np.cumsum(found.sizes)])
    return {
        found.layers[k]: units[layer == k] - starts[k] for k in np.unique(layer)
    }


def _zero(model: keras.Model, name: str, units: np.ndarray) -> None:
    """Zeroes units of a layer, in place."""
    nodes = graph.all_nodes(model)
    takers = graph.consumers(nodes)
    node = next(n for n in nodes if n.operation.name == name)
    owner = node.operation
    while True:
        after = takers.get(id(node.output_tensors[0]), [])
        if len(after) != 1:
            break
        node = after[0]
        if graph.is_normalization(node.operation):
            owner = node.operation
        elif graph.is_activation(node.operation):
            _check_activation(node.operation)
        else:
            break
    if graph.is_normalization(owner):
        scales = [v for v in (owner.gamma, owner.beta) if v is not None]
        if len(scales) < 2:
            raise ValueError(
                f"The units of layer '{name}' cannot become 0: "
                f"'{owner.name}' has no scale or no offset."
            )
    else:
        _check_activation(owner)
        scales = [owner.kernel]
        if getattr(owner, "bias", None) is not None:
            scales.append(owner.bias)
    for variable in scales:
        value = variable.numpy()
        value[..., units] = 0
        variable.assign(value)


def _check_activation(operation) -> None:
    activation = getattr(operation, "activation", None)
    if activation is None and isinstance(operation, keras.layers.Layer):
        return
    function = activation or operation
    if float(np.asarray(function(np.zeros(1, np.float32)))[0]) != 0:
        raise ValueError(
            f"The units before '{operation.name}' cannot become 0: its "
            "activation does not give 0 for 0. Expected one that does, such "
            "as relu, gelu or tanh."
        )
