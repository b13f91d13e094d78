"""Unit gates: each example of a batch with its own units switched off.

A gate m_u multiplies the output of unit u (a channel, over all positions). In
one forward pass every example may have other gates, and the gradient of the
summed loss with respect to the gates [B, U] is per example for free:

    output_u  =  m_u * x_u + (1 - m_u) * fill_u

The model is not changed and nothing is inserted: while a function is traced,
the calls of the gated layers are intercepted. That holds for nested and
shared layers, and a layer's weights are the model's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.checks import check_choice
from tfmemloc.units.config import Place

# (output of the gated call, first unit, site) -> what to use instead.
_Transform = Callable[[tf.Tensor, int, "graph.Site"], tf.Tensor]


@dataclasses.dataclass
class _Slot:
    """The k-th of the n calls of an operation in a pass, and its units."""

    call: int
    start: int
    site: graph.Site


class UnitGates:
    """The gates of a model's units.

    Args:
        model: functional or Sequential.
        layers: names of the layers whose units get gates; None takes all with
            a kernel except those that make the logits. A layer without a kernel
            (a dropout, an activation, a pooling) is gated at its output.
        place: `unit` gates a unit's output after normalization and
            activation; `block` the outputs of blocks; `weights` the output of
            the kernel itself, bias included, before normalization, which is
            where the authors' code zeroes weights.

    Attributes:
        names: of the L gated layers, input to output.
        sizes: [L] units of each.
        starts: [L] the first unit of each.
        units: U, how many gates there are.
        layer_of: [U] which layer a unit is in.

    Raises:
        ValueError: the model's graph is not known, a layer does not exist or
            has no units, or there is nothing to gate.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        layers: Sequence[str] | None = None,
        place: str = "unit",
    ):
        check_choice("place", place, typing.get_args(Place))
        if not graph.is_functional(model):
            raise ValueError(
                f"Model '{model.name}' is a subclassed or unbuilt "
                f"{type(model).__name__}, whose graph is not known. Expected "
                "a built functional or Sequential model."
            )
        sites = _chosen(model, layers, place)
        self.place = place
        self.names = tuple(dict.fromkeys(site.name for site in sites))
        by_name = {site.name: site.units for site in sites}
        self.sizes = np.array([by_name[name] for name in self.names])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.units = int(self.sizes.sum())
        self.layer_of = np.repeat(np.arange(len(self.names)), self.sizes)
        starts = dict(zip(self.names, self.starts.tolist(), strict=True))
        self._slots: dict[int, tuple[object, int, list[_Slot]]] = {}
        for site in sites:
            self._add_slot(model, site, starts[site.name])

    def _add_slot(self, model, site, start) -> None:
        operation = site.node.operation
        calls = _calls(model, operation)
        which = next(k for k, node in enumerate(calls) if node is site.node)
        entry = self._slots.setdefault(
            id(operation), (operation, len(calls), [])
        )
        if any(slot.call == which for slot in entry[2]):
            return  # Several layers meet in one block.
        entry[2].append(_Slot(which, start, site))

    def label_of(self, unit: int) -> tuple[str, int]:
        """The layer of a unit, and its place in the layer."""
        layer = int(self.layer_of[unit])
        return self.names[layer], int(unit - self.starts[layer])

    @contextlib.contextmanager
    def applied(
        self, gate: tf.Tensor, fill: tf.Tensor | None = None
    ) -> Iterator[None]:
        """Applies gates to the calls of the model within a context.

        Args:
            gate: [B, U] or [1, U], 1 is on.
            fill: [U] the output of a unit that is off; None is 0.
        """

        def transform(x, start, site):
            part = _broadcast(gate[:, start : start + site.units], x, site)
            if fill is None:
                return x * part
            value = fill[tf.newaxis, start : start + site.units]
            return x * part + (1 - part) * _broadcast(value, x, site)

        with self._intercepted(transform):
            yield

    @contextlib.contextmanager
    def recorded(self) -> Iterator[dict[int, tf.Tensor]]:
        """Keeps units' outputs within a context: start -> [B, P, units]."""
        outputs: dict[int, tf.Tensor] = {}

        def transform(x, start, site):
            rank = x.shape.rank
            order = [i for i in range(rank) if i != site.axis % rank]
            by_unit = tf.transpose(x, [*order, site.axis % rank])
            by_unit = tf.reshape(by_unit, [tf.shape(x)[0], -1, site.units])
            outputs[start] = tf.cast(by_unit, tf.float32)
            return x

        with self._intercepted(transform):
            yield outputs

    @contextlib.contextmanager
    def _intercepted(self, transform: _Transform) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for operation, calls, slots in self._slots.values():
                stack.enter_context(
                    _patched(
                        operation,
                        calls,
                        {slot.call: slot for slot in slots},
                        transform,
                        before_activation=self.place == "weights",
                    )
                )
            yield


def _calls(model, operation) -> list:
    """The nodes of an operation in the graph that it stands in."""
    found = [n for n in graph.nodes(model) if n.operation is operation]
    if found:
        return found
    for node in graph.nodes(model):
        if isinstance(node.operation, keras.Model):
            found = _calls(node.operation, operation)
            if found:
                return found
    return []


def _chosen(model, layers, place) -> list[graph.Site]:
    """The sites that get gates."""
    if place == "block":
        sites = graph.block_sites(model)
    else:
        sites = graph.unit_sites(model, after=place == "unit")
    if layers is not None:
        sites = [site for name in layers for site in _of(model, sites, name)]
    if not sites:
        raise ValueError(
            f"Model '{model.name}' has no units to gate. Expected layers with "
            "a kernel (dense, convolution) before the one that makes the "
            "logits; or name others with `layers`."
        )
    return sites


def _of(model, sites, name: str) -> list[graph.Site]:
    """The sites of a layer."""
    own = [site for site in sites if site.name == name]
    if own:
        return own
    by_name = {layer.name: layer for layer in graph.flat_layers(model)}
    choices = f"Layers with units: {', '.join(s.name for s in sites)}."
    if name not in by_name:
        raise ValueError(
            f"Model '{model.name}' has no layer {name!r}. {choices}"
        )
    layer = by_name[name]
    found = _calls(model, layer)
    if graph.has_units(layer) or not found or len(found[0].outputs) != 1:
        raise ValueError(
            f"Layer {name!r} has no units to gate: it makes the logits, or "
            f"not one tensor. {choices}"
        )
    axis = graph.unit_axis(layer)
    units = found[0].output_tensors[0].shape[axis]
    if units is None or len(found[0].output_tensors[0].shape) < 2:
        raise ValueError(
            f"Layer {name!r} gives a tensor of shape "
            f"{found[0].output_tensors[0].shape}. Expected a known number of "
            f"units on axis {axis}. {choices}"
        )
    return [graph.Site(name, node, axis, int(units)) for node in found]


def _broadcast(part: tf.Tensor, x: tf.Tensor, site: graph.Site) -> tf.Tensor:
    """[B, units] in the rank and precision of x."""
    shape = [1] * x.shape.rank
    shape[0], shape[site.axis] = -1, site.units
    return tf.cast(tf.reshape(part, shape), x.dtype)


@contextlib.contextmanager
def _patched(
    operation, calls: int, slots, transform, *, before_activation: bool
) -> Iterator[None]:
    call, activation = operation.call, vars(operation).get("activation")
    count = 0
    current: list[_Slot | None] = [None]

    def gated(*args, **kwargs):
        nonlocal count
        current[0] = slot = slots.get(count % calls)
        count += 1
        output = call(*args, **kwargs)
        if slot is None or (before_activation and activation is not None):
            return output
        return transform(output, slot.start, slot.site)

    def gated_activation(x):
        slot = current[0]
        if slot is not None:
            x = transform(x, slot.start, slot.site)
        return activation(x)

    has_own = before_activation and activation is not None
    with graph.intercepted(
        operation, gated, gated_activation if has_own else None
    ):
        yield
