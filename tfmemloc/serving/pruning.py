"""Slicing memorization units out of a network, weights and all.

What a network was expanded by goes as a whole, and the given network is left
(see `tfmemloc.layers.memory_branch`). Where memorization units were carved out
of a layer's own, most channels are zero with them off (`drop`). They, the
weights that compute them and the weights that read them can go, and the
outputs stay the same. For each tensor of the graph, along its last axis:

    zero    channels that are 0 whatever the input (forward pass)
    wanted  channels that something behind it reads (backward pass)
    kept    wanted and not zero

Then the layers are made anew with the kept channels alone. A layer that mixes
channels in a way that is not known here (layer normalization, softmax, an
unknown layer) is *whole*: it gets its input with the zeros put back, and all
of its output is kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.serving.pruning_rules import Mask, Plan, channels_of
from tfmemloc.serving.rule_choice import rule_of


def prune_memorization(model: keras.Model) -> keras.Model:
    """An ordinary, smaller network without the memorization units.

    Args:
        model: functional, with tied layers in `drop` behaviour.

    Returns:
        A new functional model of Keras's own layers (and unknown ones of
        `model`), with weights of its own; it has no `example_id` input where
        no layer is left that takes it. Its outputs are those of
        `model(..., training=False)`, up to the order of sums.

    Raises:
        ValueError: the model has no tied layer, one that is not in drop
            behaviour, or its graph is not known.

    Example:
        >>> small = prune_memorization(with_inference(model, "drop"))
        >>> small.count_params() < model.count_params()
        True
    """
    _check(model)
    pruned = sliced(model)
    if pruned.count_params() == model.count_params():
        warnings.warn(
            f"Nothing could be sliced out of model '{model.name}': pruning "
            "sees through none of the layers behind its tied layers. The new "
            "network gives the same outputs and has as many weights; "
            "`pruning_plan(model)` says which layers stay whole.",
            stacklevel=2,
        )
    return pruned


def pruning_plan(model: keras.Model) -> list[dict[str, Any]]:
    """What pruning does to each layer that has units.

    Args:
        model: as for `prune_memorization`.

    Returns:
        A row for each layer: units and input channels, before and after; and
        whether it stays `whole` because pruning cannot see through it.

    Example:
        >>> plan = pruning_plan(with_inference(model, "drop"))
        >>> plan[0]["layer"], plan[0]["units"], plan[0]["units_after"]
        ('conv1.conv', 6, 1)
    """
    _check(model)
    return _Pruning(model).rows()


def sliced(model: keras.Model) -> keras.Model:
    """A model of its own without the channels that are zero whatever comes in.

    Args:
        model: functional, its tied layers in `drop` behaviour.
    """
    return _Pruning(model).model()


class _Pruning:
    """The analysis of one model, and the model that comes of it."""

    def __init__(self, model: keras.Model):
        self._model = graph.inlined(graph.served_network(model))
        found = graph.nodes(self._model)
        uses: dict[int, int] = {}
        for node in found:
            key = id(node.operation)
            uses[key] = uses.get(key, 0) + 1
        self._calls = [
            (node, rule_of(node, uses[id(node.operation)])) for node in found
        ]
        self._zero = self._find_zeros()
        self._keep = self._find_kept()
        self._have: dict[int, Mask] = {}
        self._made: dict[int, list[Callable]] = {}

    def _find_zeros(self) -> dict[int, Mask]:
        zero = {
            id(t): np.zeros(channels_of(t), bool)
            for t in keras.tree.flatten(graph.inputs_of(self._model))
        }
        for node, rule in self._calls:
            inputs = [zero[id(t)] for t in node.input_tensors]
            for tensor in node.output_tensors:
                zero[id(tensor)] = np.zeros(channels_of(tensor), bool)
            if not rule.whole:
                zero[id(node.output_tensors[0])] = rule.zero(inputs)
        return zero

    def _find_kept(self) -> dict[int, Mask]:
        wanted = {key: np.zeros(len(z), bool) for key, z in self._zero.items()}
        for tensor in keras.tree.flatten(graph.outputs_of(self._model)):
            wanted[id(tensor)][:] = True
        for node, rule in reversed(self._calls):
            keep = wanted[id(node.output_tensors[0])]
            if not rule.whole and not keep.any():
                keep = _one_of(keep)
            for tensor, want in zip(
                node.input_tensors, rule.wanted(keep), strict=True
            ):
                wanted[id(tensor)] |= want & ~self._zero[id(tensor)]
        return {
            key: mask if mask.any() else _one_of(mask)
            for key, mask in wanted.items()
        }

    def model(self) -> keras.Model:
        """The pruned model."""
        inputs = graph.fresh_inputs(self._model)
        for tensor in keras.tree.flatten(graph.inputs_of(self._model)):
            self._have[id(tensor)] = np.ones(channels_of(tensor), bool)
        rules = {id(node): rule for node, rule in self._calls}
        outputs = graph.replay(
            self._model,
            inputs,
            lambda node, args, kwargs: self._call(
                node, rules[id(node)], args, kwargs
            ),
        )
        used = graph.used_inputs(inputs, outputs)
        return keras.Model(used, outputs, name=self._model.name)

    def _call(self, node, rule, args, kwargs):
        """Repeats one call, on inputs that have the channels it expects."""
        have = self._inputs_of(node)
        plan = self._plan(node, rule)
        pairs = iter(zip(have, plan.targets, strict=True))

        def aligned(value):
            if not isinstance(value, keras.KerasTensor):
                return value
            return _aligned(value, *next(pairs))

        # The tensors come in the order of node.input_tensors.
        args, kwargs = keras.tree.map_structure(aligned, (args, kwargs))
        layer, weights = self._made_once(node.operation, plan)
        output = layer(*args, **kwargs)
        if weights:
            layer.set_weights(weights)
        return output

    def _made_once(self, old, plan):
        """The layer of a plan, where the old one is called several times.

        With weights, its calls share one copy; without, each has its own,
        under a name of its own.
        """
        layer, weights = plan.layer, plan.weights
        calls = self._made.setdefault(id(old), [])
        if calls and isinstance(layer, keras.layers.Layer):
            if old.weights:
                return calls[0], None
            config = {**layer.get_config(), "name": f"{old.name}_{len(calls)}"}
            layer = type(layer).from_config(config)
        calls.append(layer)
        return layer, weights

    def _inputs_of(self, node) -> list[Mask]:
        return [self._have[id(tensor)] for tensor in node.input_tensors]

    def _plan(self, node, rule) -> Plan:
        plan = rule.plan(
            self._inputs_of(node), self._keep[id(node.output_tensors[0])]
        )
        for tensor in node.output_tensors:
            self._have[id(tensor)] = np.ones(channels_of(tensor), bool)
        self._have[id(node.output_tensors[0])] = plan.have
        return plan

    def rows(self) -> list[dict[str, Any]]:
        """A row for each layer with units, and for each one left whole."""
        for tensor in keras.tree.flatten(graph.inputs_of(self._model)):
            self._have[id(tensor)] = np.ones(channels_of(tensor), bool)
        rows = []
        for node, rule in self._calls:
            before = self._inputs_of(node)
            plan = self._plan(node, rule)
            had_zeros = any(not mask.all() for mask in before)
            stays = rule.whole and had_zeros
            if graph.has_units(node.operation) or stays:
                rows.append(
                    {
                        "layer": node.operation.name,
                        "units": rule.channels,
                        "units_after": int(plan.have.sum()),
                        "inputs": rule.inputs[0],
                        "inputs_after": int(plan.targets[0].sum()),
                        "whole": stays,
                    }
                )
        return rows


def _one_of(mask: Mask) -> Mask:
    """A tensor needs a channel, if only to have a shape."""
    result = mask.copy()
    result[:1] = True
    return result


def _check(model: keras.Model) -> None:
    tied = graph.tied_layers(model)
    if not tied:
        raise ValueError(
            f"Model '{model.name}' has no ExampleTiedDropout layer, so that "
            "there are no memorization units to prune. Expected a model that "
            "was trained with tied layers (see `tie_dropout`)."
        )
    wrong = [layer for layer in tied if layer.inference != "drop"]
    if wrong:
        raise ValueError(
            f"Layer '{wrong[0].name}' of model '{model.name}' has inference="
            f'"{wrong[0].inference}", which uses its memorization units. '
            'Expected "drop"; with_inference(model, "drop") makes it so.'
        )


def _aligned(x, have: Mask, target: Mask):
    """A tensor that has the target's channels: sliced, or zeros put back."""
    if np.array_equal(have, target):
        return x
    place = np.cumsum(have) - 1
    if not np.any(target & ~have):
        return _taken(x, place[target])
    # What is missing is zero; it is read from one channel of zeros.
    padding = [[0, 0]] * (len(x.shape) - 1)
    count, missing = int(have.sum()), int(np.sum(target & ~have))
    if np.array_equal(np.flatnonzero(target)[:count], np.flatnonzero(have)):
        return keras.ops.pad(x, [*padding, [0, missing]])
    x = keras.ops.pad(x, [*padding, [0, 1]])
    return _taken(x, np.where(have, place, count)[target])


def _taken(x, index: np.ndarray):
    return keras.ops.take(x, index.tolist(), axis=-1)
