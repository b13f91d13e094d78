"""What the removal by curvature costs, in epochs of the network's training.

5,000 pictures of 32 x 32 x 3 (scikit-learn's digits, four times as large, each
several times with other noise), 500 held out, quarter ResNet-9. All costs
count: tracing, eigenvectors, the choice, BatchNorm.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn import datasets

from benchmarks.harness import Row
from tfmemloc import (
    CurvatureConfig,
    Examples,
    ModelConfig,
    TrainConfig,
    build,
    curvature_factors,
    from_arrays,
    make_batches,
    remove_memory,
)
from tfmemloc.data import steps_per_epoch
from tfmemloc.training.optimizer import make_optimizer
from tfmemloc.training.step import make_train_step

_COUNT, _HELD_OUT, _BATCH, _EPOCHS = 5000, 500, 128, 6


def _pictures() -> Examples:
    digits = datasets.load_digits()
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(digits.images), _COUNT + _HELD_OUT)
    large = np.kron(digits.images[drawn], np.ones((1, 4, 4)))
    noisy = 12 * large + rng.normal(0, 40, large.shape)
    images = np.clip(noisy, 0, 255).astype(np.uint8)
    label = digits.target[drawn].copy()
    wrong = rng.random(len(label)) < 0.1
    label[wrong] = rng.integers(0, 10, wrong.sum())
    subset = np.repeat(["clean", "heldout"], [_COUNT, _HELD_OUT])
    return from_arrays(
        np.repeat(images[..., np.newaxis], 3, axis=-1),
        label,
        subset=subset,
        classes=10,
    )


def run() -> list[Row]:
    """Seconds over those of an epoch, once each."""
    examples = _pictures()
    model = build(ModelConfig(width=0.25, dropout="none"), (32, 32, 3), 10)
    epoch = _epoch_seconds(model, examples)
    config = CurvatureConfig(refit_epochs=0)
    factors = _seconds(
        lambda: curvature_factors(
            model, examples.train, positions=config.positions
        )
    )
    edit = _seconds(lambda: remove_memory(model, examples, config))
    refits = _seconds(
        lambda: remove_memory(
            model, examples, CurvatureConfig(believe="network")
        )
    )
    return [
        Row(
            "edit",
            f"quarter resnet9: {name} / epoch",
            value,
            value,
            value,
            1,
            reach,
            True,
        )
        for name, value, reach in (
            ("curvature factors", factors / epoch, 1.5),
            ("an edit with its choice", edit / epoch, 3.0),
            ("two edits, six epochs of refits", refits / epoch, None),
        )
    ]


def _epoch_seconds(model, examples: Examples) -> float:
    """The median epoch of a short training, without its tracing."""
    train = examples.train
    steps = steps_per_epoch(len(train), _BATCH)
    training = TrainConfig(learning_rate=0.05)
    optimizer = make_optimizer(training, steps * _EPOCHS)
    optimizer.build(model.trainable_variables)
    batches = make_batches(train, _BATCH, seed=0)
    step = make_train_step(model, optimizer, batch_spec=batches.element_spec)
    iterator = iter(batches)
    step(next(iterator))
    seconds = [
        _seconds(lambda: [step(next(iterator)) for _ in range(steps)])
        for _ in range(_EPOCHS)
    ]
    return float(np.median(seconds))


def _seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
