"""The gradient of each example: whole, its norm, or along a direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfmemloc import graph
from tfmemloc.data.examples import Examples
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.streaming import MEMORY_BUDGET, check_finite, stream


def per_example_gradients(
    engine: GradientEngine,
    examples: Examples,
    *,
    memory_budget: int = MEMORY_BUDGET,
) -> list[np.ndarray]:
    """The gradient of each example: V arrays [N, *shape of the variable].

    For few examples: N gradients are as large as N copies of the weights.

    Example:
        >>> engine = GradientEngine(model)
        >>> gradients = per_example_gradients(engine, examples.test)
        >>> gradients[0].shape == (40, *engine.variables[0].shape)
        True
    """
    chunks = [
        [part.numpy() for part in engine.gradients(chunk.inputs, chunk.label)]
        for chunk in stream(engine, examples, memory_budget, "gradients")
    ]
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def per_example_norms(
    engine: GradientEngine,
    examples: Examples,
    *,
    groups: graph.Groups | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> np.ndarray:
    """The L2 norm of each example's gradient, by layer group or variable.

    Args:
        engine: of the model.
        examples: N examples, in any order.
        groups: from `layer_groups`; None gives a column for each of the
            engine's variables.
        memory_budget: bytes that a chunk of examples may take; chunks are as
            large as they can be below it.
        progress: show a progress bar.

    Returns:
        float32 [N, G] or [N, V].

    Raises:
        ValueError: a label is no class, or the budget is too small for one
            example.
        FloatingPointError: a gradient is NaN or infinite; names the examples.

    Example:
        >>> engine = GradientEngine(model)
        >>> norms = per_example_norms(engine, examples,
        ...                           groups=layer_groups(model))
        >>> norms.shape
        (120, 5)
    """
    matrix = group_matrix(engine, groups)
    parts = []
    for chunk in stream(engine, examples, memory_budget, "norms", progress):
        squared = engine.norms_squared(chunk.inputs, chunk.label).numpy()
        check_finite(squared, examples.example_id[chunk.places], examples.name)
        parts.append(squared @ matrix)
    return np.sqrt(np.concatenate(parts))


def per_example_dots(
    engine: GradientEngine,
    examples: Examples,
    direction: Sequence[np.ndarray],
    *,
    groups: graph.Groups | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> np.ndarray:
    """Inner product of each example's gradient with a direction.

    The gradients are not formed.

    Args:
        engine: of the model.
        examples: N examples.
        direction: V arrays in the shapes of the engine's variables.
        groups: see `per_example_norms`.
        memory_budget: see `per_example_norms`.
        progress: show a progress bar.

    Returns:
        float32 [N, G] or [N, V]; their sum over the last axis is the whole
        product.

    Example:
        >>> engine = GradientEngine(model)
        >>> direction = [v.numpy() for v in engine.variables]
        >>> per_example_dots(engine, examples.test, direction).shape[0]
        40
    """
    expected = [tuple(v.shape) for v in engine.variables]
    received = [np.shape(d) for d in direction]
    if expected != received:
        raise ValueError(
            f"Expected a direction of shapes {expected}. Received: {received}."
        )
    matrix = group_matrix(engine, groups)
    parts = []
    for chunk in stream(engine, examples, memory_budget, "dots", progress):
        dots = engine.dots(chunk.inputs, chunk.label, direction).numpy()
        check_finite(dots, examples.example_id[chunk.places], examples.name)
        parts.append(dots @ matrix)
    return np.concatenate(parts)


def group_matrix(
    engine: GradientEngine, groups: graph.Groups | None
) -> np.ndarray:
    """[V, G]: 1 where a variable is in a group."""
    if groups is None:
        return np.eye(len(engine.variables), dtype=np.float32)
    place = {id(v): n for n, v in enumerate(engine.variables)}
    matrix = np.zeros((len(engine.variables), len(groups)), np.float32)
    by_group = graph.group_variables(groups, trainable_only=True)
    for g, variables in enumerate(by_group.values()):
        for variable in variables:
            matrix[place[id(variable)], g] = 1
    return matrix


def group_gradients(
    engine: GradientEngine,
    groups: graph.Groups,
    gradient: Sequence[np.ndarray],
) -> Mapping[str, list[np.ndarray]]:
    """The parts of a gradient (V arrays) by layer group."""
    place = {id(v): n for n, v in enumerate(engine.variables)}
    by_group = graph.group_variables(groups, trainable_only=True)
    return {
        name: [gradient[place[id(v)]] for v in variables]
        for name, variables in by_group.items()
    }
