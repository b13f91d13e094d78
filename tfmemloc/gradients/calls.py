"""Recording the calls of layers, and their per-example gradients.

The terms of a layer come from its closed form, if it has one, and otherwise
from `tf.vectorized_map` around that layer alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmemloc import graph
from tfmemloc.gradients.closed_forms import HANDLERS
from tfmemloc.gradients.terms import Full, Term


@dataclasses.dataclass
class Call:
    """One call of a layer: what went in, what came out.

    Attributes:
        layer: which layer.
        args: positional arguments.
        kwargs: named arguments.
        output: before the layer's activation, where it has one of its own.
    """

    layer: keras.layers.Layer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


def weighted_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that own trainable weights themselves, however nested."""
    found = []
    for layer in model._flatten_layers(include_self=True, recursive=True):
        inner = {
            id(variable)
            for other in layer._flatten_layers(include_self=False)
            for variable in other.trainable_variables
        }
        if any(id(v) not in inner for v in layer.trainable_variables):
            found.append(layer)
    return found


@contextlib.contextmanager
def recorded_calls(
    layers: Sequence[keras.layers.Layer],
) -> Iterator[list[Call]]:
    """Records every call of `layers` while a function is traced.

    Works wherever the layers stand: nested, shared, or in a subclassed model.
    The layers are as before when the context ends.
    """
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_recording(layer, calls))
        yield calls


@contextlib.contextmanager
def _recording(layer, calls: list[Call]) -> Iterator[None]:
    call, activation = layer.call, vars(layer).get("activation")

    def recording_call(*args, **kwargs):
        record = Call(layer, args, kwargs)
        calls.append(record)
        output = call(*args, **kwargs)
        if record.output is None:
            record.output = output
        return output

    def recording_activation(x):
        calls[-1].output = x
        return activation(x)

    has_own = activation is not None and type(layer) in HANDLERS
    with graph.intercepted(
        layer, recording_call, recording_activation if has_own else None
    ):
        yield


def terms_of_call(
    call: Call, gradient: tf.Tensor
) -> list[tuple[keras.Variable, Term]] | None:
    """The closed forms of one call, or None where there are none.

    Args:
        call: from `recorded_calls`.
        gradient: of the summed loss with respect to `call.output`.
    """
    handler = HANDLERS.get(type(call.layer))
    if handler is None or not call.args:
        return None
    # Sums over examples and positions lose too much in half precision.
    return handler(call.layer, call.args[0], tf.cast(gradient, tf.float32))


def dense_gradients(
    tape: tf.GradientTape,
    target: Any,
    variables: Sequence[keras.Variable],
    **options: Any,
) -> list[tf.Tensor]:
    """Gradients of variables: zeros where unconnected, no IndexedSlices."""
    found = tape.gradient(
        target,
        [variable.value for variable in variables],
        unconnected_gradients="zero",
        **options,
    )
    return [tf.convert_to_tensor(gradient) for gradient in found]


def terms_by_vectorized_map(
    call: Call, gradient: Any
) -> list[tuple[keras.Variable, Term]]:
    """The terms of any layer: its vector-Jacobian product, example by example.

    Only this layer is computed again, under `tf.vectorized_map`.
    """
    layer = call.layer
    variables = layer.trainable_variables
    structure = (call.args, call.kwargs)
    leaves = keras.tree.flatten(structure)
    is_mapped = [tf.is_tensor(leaf) and leaf.shape.rank > 0 for leaf in leaves]
    mapped = [leaf for leaf, yes in zip(leaves, is_mapped, strict=True) if yes]

    def one(arguments):
        slices, upstream = arguments
        slices = iter(slices)
        args, kwargs = keras.tree.pack_sequence_as(
            structure,
            [
                next(slices)[tf.newaxis] if yes else leaf
                for leaf, yes in zip(leaves, is_mapped, strict=True)
            ],
        )
        with tf.GradientTape() as tape:
            output = layer.call(*args, **kwargs)
        upstream = keras.tree.map_structure(lambda g: g[tf.newaxis], upstream)
        return dense_gradients(
            tape, output, variables, output_gradients=upstream
        )

    values = tf.vectorized_map(one, (mapped, gradient))
    return [
        (variable, Full(tf.cast(value, tf.float32)))
        for variable, value in zip(variables, values, strict=True)
    ]
