"""Each ranking of units, many examples at once, beside one after another.

The slow side ranks one example at a time and calls every operation by itself,
as a plain loop over examples in eager TensorFlow does.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import tensorflow as tf

from benchmarks.harness import Row
from tfmemloc import DataConfig, ModelConfig, SearchConfig, build, load
from tfmemloc.units import GatedModel, UnitGates, rankings

_EXAMPLES, _SLOW = 64, 2


def run() -> list[Row]:
    """Quarter ResNet-9 on the digits: 64 examples at once, 2 of them alone."""
    examples = load(DataConfig(train_examples=256)).train
    model = build(ModelConfig(width=0.25, dropout="none"), (8, 8, 1), 10)
    gated = GatedModel(
        model, UnitGates(model), examples, SearchConfig(population=128)
    )
    block = examples.take(np.arange(_EXAMPLES))
    # An untrained network is right on what it says itself.
    block = dataclasses.replace(block, label=gated.predicted(block))
    return [
        row
        for name in rankings.names()
        for row in _of_ranking(name, gated, block)
    ]


def _of_ranking(name: str, gated: GatedModel, block) -> list[Row]:
    rank = rankings.named(name).rank
    gate = gated.open_gates(_EXAMPLES)
    rank(gated, block, gate)  # Traces.
    started = time.perf_counter()
    rank(gated, block, gate)
    fast = (time.perf_counter() - started) / _EXAMPLES
    tf.config.run_functions_eagerly(True)
    try:
        started = time.perf_counter()
        for n in range(_SLOW):
            rank(gated, block.take(np.array([n])), gate[:1])
        slow = (time.perf_counter() - started) / _SLOW
    finally:
        tf.config.run_functions_eagerly(False)
    return [
        _row(f"{name}: one at a time, eagerly / at once", slow / fast, False),
        _row(f"{name}: milliseconds an example, at once", 1e3 * fast, True),
    ]


def _row(metric: str, value: float, lower_is_better: bool) -> Row:
    return Row(
        "rankings", metric, value, value, value, 1, None, lower_is_better
    )
