"""Structured pruning: any units out of any functional model, for real.

A mask of zeros leaves a network as large as it was. Here the units that are
not kept, the weights that compute them and the weights that read them are
sliced out, and the outputs are those of the masked network. The same analysis
as for memorization units does it; see `tfmemloc.serving.pruning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.checks import as_array
from tfmemloc.layers.unit_mask import UnitMask
from tfmemloc.serving.pruning import sliced


def prune_units(
    model: keras.Model, keep: Mapping[str, Sequence[bool]]
) -> keras.Model:
    """A smaller network without some units of some layers.

    A *unit* is an output channel of a layer with a kernel, after the
    normalization and the activation that follow it.

    Args:
        model: functional or Sequential, without tied layers.
        keep: name of a layer -> whether each of its units stays, [units]
            booleans. Layers that are not named keep all.

    Returns:
        A new model of Keras's own layers, with weights of its own. Its outputs
        are those of `model(..., training=False)` with the other units set to
        0, up to the order of sums. What cannot be sliced, such as channels
        that layer normalization mixes, stays as zeros.

    Raises:
        ValueError: the model has tied layers, a layer has no units, or a mask
            is no [units] booleans or keeps nothing.

    Example:
        >>> network = untie(model)
        >>> half = np.arange(6) < 3
        >>> small = prune_units(network, {"conv1.conv": half})
        >>> small.get_layer("conv1.conv").filters
        3
    """
    if graph.tied_layers(model):
        raise ValueError(
            f"Model '{model.name}' has tied layers. Expected one without: "
            "prune_memorization(model) takes its memory out, untie(model) the "
            "layers alone."
        )
    if not isinstance(keep, Mapping):
        raise TypeError(
            "`keep` must be a mapping from names of layers to booleans, one "
            f"for each unit. Received: {type(keep).__name__}."
        )
    model = graph.inlined(model)
    sites = graph.unit_sites(model)
    masks = {
        name: _checked(model, sites, name, mask) for name, mask in keep.items()
    }
    behind: dict[int, list[str]] = {}
    for site in sites:
        if site.name in masks:
            behind.setdefault(id(site.node), []).append(site.name)

    def call(node, args, kwargs):
        output = node.operation(*args, **kwargs)
        for name in behind.get(id(node), ()):
            output = UnitMask(masks[name].tolist())(output)
        return output

    inputs = graph.fresh_inputs(model)
    outputs = graph.replay(model, inputs, call)
    return sliced(keras.Model(inputs, outputs, name=model.name))


def _checked(model, sites, name: str, mask) -> np.ndarray:
    """The mask of a layer as bool [units]."""
    found = [site for site in sites if site.name == name]
    if not found:
        known = ", ".join(dict.fromkeys(site.name for site in sites))
        raise ValueError(
            f"Model '{model.name}' has no layer {name!r} with units. Expected "
            f"some of {known or 'none: no layer has any'}."
        )
    units, axis = found[0].units, found[0].axis
    mask = as_array(mask)
    if mask.dtype != bool or mask.shape != (units,) or axis != -1:
        raise ValueError(
            f"Layer '{name}' expected a mask of {units} booleans, units on the "
            f"last axis. Received: shape {mask.shape}, dtype {mask.dtype}, "
            f"units on axis {axis}."
        )
    if not mask.any():
        raise ValueError(
            f"Layer '{name}' expected a mask that keeps at least one of its "
            f"units. Received: one that keeps none of {units}."
        )
    return mask
