"""What example-tied dropout costs in a training step."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from benchmarks.harness import Row, ratios
from tfmemloc import graph
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.models import build
from tfmemloc.training.optimizer import make_optimizer
from tfmemloc.training.step import make_train_step

_SHAPE = (32, 32, 3)
_BATCH = 64
_EXAMPLES = 60_000


def run() -> list[Row]:
    """ResNet-9 with six tied layers, without, with standard dropout."""
    sides = {
        dropout: _step(dropout)
        for dropout in ("example_tied", "none", "standard")
    }
    return [
        *ratios(
            "tied_layer",
            sides,
            [
                (
                    "resnet9 step: tied / no dropout",
                    "example_tied",
                    "none",
                    1.10,
                    True,
                ),
                (
                    "resnet9 step: tied / standard dropout",
                    "example_tied",
                    "standard",
                    None,
                    True,
                ),
            ],
        ),
        *_mask_bytes(),
    ]


def _step(dropout: str):
    model = build(ModelConfig(dropout=dropout), _SHAPE, 10)
    optimizer = make_optimizer(TrainConfig(), 1000)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    batch = (
        {
            "image": tf.constant(
                rng.uniform(-1, 1, (_BATCH, *_SHAPE)), tf.float32
            ),
            "example_id": tf.range(_BATCH, dtype=tf.int64),
        },
        tf.constant(rng.integers(0, 10, _BATCH), tf.int64),
    )
    step = make_train_step(
        model,
        optimizer,
        batch_spec=tf.nest.map_structure(tf.TensorSpec.from_tensor, batch),
    )
    return lambda: float(step(batch))


def _mask_bytes() -> list[Row]:
    """What is held for masks, beside a float32 table per layer and pixel."""
    model = build(ModelConfig(), _SHAPE, 10)
    layers = graph.tied_layers(model)
    held = sum(
        weight.numpy().nbytes for layer in layers for weight in layer.weights
    )
    table = sum(
        4 * _EXAMPLES * math.prod(layer.output.shape[1:]) for layer in layers
    )
    return [
        _bytes("bytes held for masks", held),
        _bytes("gigabytes of the authors' tables, 60,000 ids", table / 1e9),
    ]


def _bytes(metric: str, value: float) -> Row:
    value = float(value)
    return Row(
        "tied_layer",
        f"resnet9: {metric}",
        value,
        value,
        value,
        1,
        None,
        lower_is_better=True,
    )
