"""Chunks of examples that fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
import tensorflow as tf

from tfmemloc import tracing
from tfmemloc.data.chunks import Chunk, chunk_at, chunks
from tfmemloc.data.examples import Examples
from tfmemloc.gradients.engine import GradientEngine

MEMORY_BUDGET = 2**30

LARGEST_CHUNK = 512


def bytes_per_example(
    engine: GradientEngine, examples: Examples, quantity: str = "account"
) -> int:
    """An upper bound of the memory that an example takes in a chunk.

    The sizes of all tensors of the graph for a batch of one are added up, as
    if none were freed before the end.

    Args:
        engine: of the gradients.
        examples: of which the first one shows the shapes.
        quantity: the engine's method that is called, `account` or `squares`.
    """
    traced = {"account": engine._account_of, "squares": engine._squares_of}
    one = chunk_at(examples, np.arange(1))
    function = tracing.function(traced[quantity]).get_concrete_function(
        *tf.nest.map_structure(
            lambda value: tf.TensorSpec.from_tensor(
                tf.convert_to_tensor(value)
            ),
            engine.as_batch(one.inputs, one.label),
        )
    )
    return bytes_of(
        function.graph, without={tuple(v.shape) for v in engine.variables}
    )


def bytes_of(graph: tf.Graph, *, without: Collection[tuple]) -> int:
    """The sizes of all tensors of a traced graph for one example, added up.

    Args:
        graph: of a concrete function; an axis of unknown size counts as 1.
        without: shapes that no example adds to, such as those of weights.
    """
    nested = [graph.get_operations()]
    for definition in graph.as_graph_def().library.function:
        known = graph._functions.get(definition.signature.name)
        if known is not None and hasattr(known, "graph"):
            nested.append(known.graph.get_operations())
    return sum(
        tensor.dtype.size * math.prod(size or 1 for size in tensor.shape)
        for operations in nested
        for operation in operations
        if operation.type not in _FREE_OPERATIONS
        for tensor in operation.outputs
        if tensor.shape.rank is not None
        and tuple(tensor.shape) not in without
        and tensor.dtype.size
    )


# The outputs of these operations need no memory of their own.
_FREE_OPERATIONS = (
    "ReadVariableOp",
    "Const",
    "Placeholder",
    "Identity",
    "Reshape",
    "StopGradient",
)


def stream(
    engine: GradientEngine,
    examples: Examples,
    memory_budget: int,
    words: str,
    progress: bool = False,
    quantity: str = "account",
) -> Iterator[Chunk]:
    """Chunks of examples that fit the budget; see `bytes_per_example`."""
    if not isinstance(engine, GradientEngine):
        raise TypeError(
            "Expected a GradientEngine: GradientEngine(model). Received: "
            f"{type(engine).__name__}."
        )
    _check_labels(engine, examples)
    size = _chunk_size(engine, examples, memory_budget, quantity)
    return chunks(examples, size, even=True, words=words, progress=progress)


def _chunk_size(
    engine, examples: Examples, memory_budget: int, quantity: str
) -> int:
    shapes = ((name, rows.shape[1:]) for name, rows in examples.inputs.items())
    key = (quantity, *shapes)
    cache: dict = engine.__dict__.setdefault("_bytes_per_example", {})
    if key not in cache:
        cache[key] = bytes_per_example(engine, examples, quantity)
    return min(LARGEST_CHUNK, examples_that_fit(cache[key], memory_budget))


def examples_that_fit(each: int, memory_budget: int) -> int:
    """How many examples of `each` bytes fit a budget: at least one.

    Raises:
        ValueError: not even one does.
    """
    if each > memory_budget:
        raise ValueError(
            f"One example takes up to {each:,} bytes. Expected a memory "
            f"budget of at least that. Received: {memory_budget:,} bytes."
        )
    return memory_budget // each


def _check_labels(engine: GradientEngine, examples: Examples) -> None:
    shape = getattr(engine.model, "output_shape", None)
    classes = shape[-1] if isinstance(shape, tuple) else None
    if classes is None or not len(examples):
        return
    largest = examples.label.max()
    if largest >= classes:
        raise ValueError(
            f"{examples.name} has labels up to {largest}, but model "
            f"'{engine.model.name}' has {classes} outputs. Expected labels "
            f"from 0 to {classes - 1}."
        )


def check_finite(values: np.ndarray, ids: np.ndarray, name: str) -> None:
    """Refuses gradients [B, ...] that are NaN or infinite; names the ids."""
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        ids = ids[bad][:5].tolist()
        raise FloatingPointError(
            f"The gradients of {bad.sum()} examples of {name} are not finite, "
            f"among them ids {ids}. Look at their inputs and at the weights; "
            "in mixed_float16, use mixed_bfloat16 instead."
        )
