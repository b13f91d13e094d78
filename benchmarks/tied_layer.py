"""What example-tied dropout costs in a training step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.harness import Row, ratios
from tfmemloc import graph
from tfmemloc.behaviours import Behaviours
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import Predictor, evaluate
from tfmemloc.models import build
from tfmemloc.serving import prune_memorization
from tfmemloc.training import rules
from tfmemloc.training.optimizer import make_optimizer
from tfmemloc.training.step import make_train_step

_SHAPE = (32, 32, 3)
_BATCH = 64
_EXAMPLES = 60_000


# Name of a side -> its network, and how a step trains it. All have the same
# served width; the last ones have a drop-mode pass of a quarter of each batch.
_STANDARD = "no dropout"
_SIDES: Mapping[str, tuple[dict[str, Any], str]] = {
    _STANDARD: ({"dropout": "none"}, "cross_entropy"),
    "tied": ({}, "cross_entropy"),
    "standard dropout": ({"dropout": "standard"}, "cross_entropy"),
    "expanded by half": ({"expand": 0.5}, "cross_entropy"),
    "expanded, late tying": ({"expand": 0.5}, "late_tying"),
    "expanded, drop pass GCE": ({"expand": 0.5}, "drop_pass_gce"),
    "expanded, drop pass ELR": ({"expand": 0.5}, "drop_pass_elr"),
    "expanded, drop pass gate": ({"expand": 0.5}, "drop_pass_gate"),
    "expanded, gate, own statistics": (
        {"expand": 0.5, "own_statistics": True},
        "drop_pass_gate",
    ),
}
# What the project wants of some of the ratios to the step without dropout.
_REACHES = {
    "tied": 1.10,
    "expanded, drop pass GCE": 1.6,
    "expanded, drop pass ELR": 1.6,
    "expanded, drop pass gate": 1.6,
}


def run() -> list[Row]:
    """Steps of ResNet-9 with six tied places, beside those without."""
    sides = {name: _step(*side) for name, side in _SIDES.items()}
    wanted = [
        (f"resnet9 step: {name} / {below}", name, below, reach, True)
        for name, below, reach in (
            *(
                (name, _STANDARD, _REACHES.get(name))
                for name in _SIDES
                if name not in (_STANDARD, "standard dropout")
            ),
            ("tied", "standard dropout", None),
        )
    ]
    return [
        *ratios("tied_layer", sides, wanted),
        *_measuring(),
        *_mask_bytes(),
        *_pruned_bytes(),
    ]


def _examples() -> Examples:
    """Ids and labels for the rules that keep something of each example."""
    rng = np.random.default_rng(0)
    return Examples(
        inputs={"image": np.zeros((_BATCH, *_SHAPE), np.uint8)},
        label=rng.integers(0, 10, _BATCH),
        true_label=np.zeros(_BATCH, np.int64),
        example_id=np.arange(_BATCH),
        subset=np.full(_BATCH, "clean"),
        classes=10,
        name="noise",
    )


def _step(network: dict[str, Any], rule: str):
    model = build(ModelConfig(**network), _SHAPE, 10)
    examples = _examples()
    training = TrainConfig(rule=rule, memory_off=0.25)
    optimizer = make_optimizer(training, 1000)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    batch = (
        {
            "image": tf.constant(
                rng.uniform(-1, 1, (_BATCH, *_SHAPE)), tf.float32
            ),
            "example_id": tf.constant(examples.example_id),
        },
        tf.constant(examples.label),
    )
    step = make_train_step(
        model,
        optimizer,
        rule=rules.named(rule, model, examples, training),
        batch_spec=tf.nest.map_structure(tf.TensorSpec.from_tensor, batch),
    )
    return lambda: float(step(batch))


def _measuring() -> list[Row]:
    """Both behaviours measured together, over one after the other.

    ResNet-9 as the paper ties it, from its first convolution on, and expanded
    by half in its last block alone.
    """
    examples = _examples()
    plain = build(ModelConfig(dropout="none"), _SHAPE, 10)
    late = graph.tie_dropout(plain, after=["conv4.relu"], expand=0.5)
    rows = []
    for name, model in (
        ("six places", build(ModelConfig(), _SHAPE, 10)),
        ("its last place", late),
    ):
        behaviours = Behaviours(model)
        apart = [
            Predictor(graph.with_inference(model, inference))
            for inference in ("tied", "drop")
        ]
        sides = {
            "together": lambda it=behaviours: it.evaluate(examples),
            "apart": lambda each=apart: [
                evaluate(predict, examples) for predict in each
            ],
        }
        metric = f"resnet9, {name} tied: measured together / apart"
        wanted = [(metric, "together", "apart", None, True)]
        rows += ratios("tied_layer", sides, wanted)
    return rows


def _pruned_bytes() -> list[Row]:
    """Weights of the standard network over those of pruned tied ones."""
    standard = build(ModelConfig(dropout="none"), _SHAPE, 10).count_params()

    def ratio(**network) -> float:
        tied = build(ModelConfig(**network), _SHAPE, 10)
        return standard / prune_memorization(tied).count_params()

    return [
        _bytes("standard / expanded and pruned weights", ratio(expand=0.5)),
        _bytes("standard / tied (p_gen 0.2) and pruned weights", ratio()),
        dataclasses.replace(
            _bytes(
                "standard / tied at all layers (p_gen 0.2) and pruned weights",
                ratio(places="layers"),
            ),
            reach=10.0,
            lower_is_better=False,
        ),
    ]


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
