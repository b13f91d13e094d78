"""Layer rewinding and retraining with and without reused prefixes."""

from __future__ import annotations

import dataclasses

import numpy as np

from benchmarks.harness import Row, ratios
from tfmemloc import data, evaluation, graph
from tfmemloc.configs import ModelConfig
from tfmemloc.models import build
from tfmemloc.probes.group_learner import GroupLearner
from tfmemloc.probes.layer_retraining import RetrainConfig
from tfmemloc.probes.layer_rewinding import Rewinder

_EPOCHS = 8


def rewinding() -> list[Row]:
    """ResNet-9 at half width on 64 images of 28x28: 9 groups, 8 epochs."""
    examples = _examples(64)
    config = ModelConfig(width=0.5, dropout="none")
    model = build(config, (28, 28, 1), 10)
    groups = graph.layer_groups(model)
    sources = [
        build(
            dataclasses.replace(config, seed=seed), (28, 28, 1), 10
        ).get_weights()
        for seed in range(1, _EPOCHS + 1)
    ]
    rewinder = Rewinder(model, groups, "single", True, sources)
    predict = evaluation.Predictor(model)
    variables = graph.group_variables(groups)
    place = {id(v): n for n, v in enumerate(model.weights)}

    def plain():
        for source in sources:
            for of_group in variables.values():
                values = [source[place[id(v)]] for v in of_group]
                with graph.swapped_weights(of_group, values):
                    evaluation.predict_logits(predict, examples)

    return ratios(
        "rewinding",
        {"reused": lambda: rewinder.run(examples, 64, False), "plain": plain},
        [("resnet9: sweep / plain sweep", "reused", "plain", 0.65, True)],
    )


def retraining() -> list[Row]:
    """An epoch of retraining each group, with its prefix reused or not."""
    examples = data.add_label_noise(_examples(256), 0.1, seed=0)
    model = build(ModelConfig(width=0.5, dropout="none"), (28, 28, 1), 10)
    rows = []
    for name, layers in graph.layer_groups(model).items():
        sides = {
            side: _epoch_of(model, layers, examples, budget)
            for side, budget in (("reused", 2**30), ("not", 0))
        }
        rows += ratios(
            "retraining",
            sides,
            [(f"resnet9 {name}: reused / not", "reused", "not", None, True)],
        )
    return rows


def _epoch_of(model, layers, examples, budget):
    """A function that trains a group for an epoch; traced already."""
    training = RetrainConfig(epochs=1000, stop_at=None).training(128)
    count = len(examples.of_subset("clean"))
    steps = data.steps_per_epoch(count, training.batch_size)
    learner = GroupLearner(model, layers, model.get_weights(), budget)
    with learner.alone():
        step, dataset, _ = learner.start(examples, training, "clean")
        iterator = iter(dataset)
        step(next(iterator))

    def epoch():
        for _ in range(steps):
            loss = step(next(iterator))
        return float(loss)

    return epoch


def _examples(count: int) -> data.Examples:
    """Images of MNIST's shape; their content does not change the time."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count + 1, 28, 28, 1), np.uint8)
    label = np.arange(count + 1) % 10
    return data.from_arrays(
        pixels[:count], label[:count], pixels[count:], label[count:]
    )
