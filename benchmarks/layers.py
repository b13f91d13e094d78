"""Layer rewinding and retraining with and without reused prefixes."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.harness import Row, ratios
from tfmemloc import data, evaluation, surgery
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build
from tfmemloc.probes.layer_retraining import AUTHORS_TRAINING, _Learner
from tfmemloc.probes.layer_rewinding import _Sweep

_EPOCHS = 8


def rewinding() -> list[Row]:
    """ResNet-9 at half width, MNIST-sized images, 9 groups x 8 epochs."""
    examples = _examples(512)
    config = ModelConfig(width=0.5, dropout="none")
    model = build(config, (28, 28, 1), 10)
    groups = surgery.layer_groups(model)
    sources = [
        build(
            dataclasses.replace(config, seed=seed), (28, 28, 1), 10
        ).get_weights()
        for seed in range(1, _EPOCHS + 1)
    ]
    sweep = _Sweep(model, groups, "single", True, sources)
    predict = evaluation.make_predictor(model)
    variables = surgery.group_variables(groups)
    place = {id(v): n for n, v in enumerate(model.weights)}

    def plain():
        for source in sources:
            for of_group in variables.values():
                values = [source[place[id(v)]] for v in of_group]
                with surgery.swapped_weights(of_group, values):
                    evaluation.predict_logits(predict, examples)

    return ratios(
        "rewinding",
        {"reused": lambda: sweep.run(examples, 512, False), "plain": plain},
        [("resnet9: sweep / plain sweep", "reused", "plain", 0.65, True)],
    )


def retraining() -> list[Row]:
    """Two epochs of retraining each group, prefixes reused or not."""
    examples = data.add_label_noise(_examples(512), 0.1, seed=0)
    training = dataclasses.replace(
        AUTHORS_TRAINING, epochs=2, batch_size=128, stop_at=None
    )
    model = build(ModelConfig(width=0.5, dropout="none"), (28, 28, 1), 10)
    weights = model.get_weights()
    rows = []
    for name, layers in surgery.layer_groups(model).items():

        def learn(budget, layers=layers):
            learner = _Learner(model, layers, weights, budget)
            learner.learn(examples, training, "clean")

        rows += ratios(
            "retraining",
            {"reused": lambda: learn(2**30), "not": lambda: learn(0)},
            [(f"resnet9 {name}: reused / not", "reused", "not", None, True)],
        )
    return rows


def _examples(count: int) -> data.Examples:
    """Images of MNIST's shape; their content does not change the time."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count + 1, 28, 28, 1), np.uint8)
    label = np.arange(count + 1) % 10
    return data.from_arrays(
        pixels[:count], label[:count], pixels[count:], label[count:]
    )
