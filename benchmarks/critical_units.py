"""The batched search of critical units against one example at a time."""

from __future__ import annotations

import dataclasses
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks.harness import Row
from tfmemloc import data, evaluation
from tfmemloc.configs import (
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from tfmemloc.data.examples import Examples
from tfmemloc.data.sources import load
from tfmemloc.graph.inputs import arranged
from tfmemloc.losses import cross_entropy
from tfmemloc.models import build
from tfmemloc.probes.critical_units import (
    choose_ids,
    find_critical_units,
)
from tfmemloc.training.loop import train
from tfmemloc.units import GatedModel, SearchConfig, UnitGates, rankings
from tfmemloc.units.search import greedy
from tfmemloc.units.sought import Sought

_POPULATION = 512
_TRAINED = 128
_EXACT = 2


def run() -> list[Row]:
    """ResNet-9 at full width, CIFAR-10, a population of 512.

    The network first memorizes 128 images. Then 128 of them are searched with
    the term `frozen`, 2 with `exact`, and the same 2 one at a time.
    """
    examples = load(DataConfig(dataset="cifar10", train_examples=_POPULATION))
    model = build(ModelConfig(dropout="none"), (32, 32, 3), 10)
    _memorize(model, examples.train.take(np.arange(_TRAINED)))
    known = examples.train.take(np.arange(_TRAINED))
    right = evaluation.predict_logits(model, known).argmax(1) == known.label
    known = known.take(right)
    few = known.take(np.arange(_EXACT))
    gates = UnitGates(model)
    frozen_seconds, frozen = _timed(model, gates, examples, known, "frozen")
    exact_seconds, exact = _timed(model, gates, examples, few, "exact")
    started = time.perf_counter()
    slow = [
        _one_at_a_time(model, gates, examples, few.take(np.array([n])))
        for n in range(len(few))
    ]
    slow_seconds = (time.perf_counter() - started) / len(few)

    slow_for = {"frozen": slow_seconds / frozen_seconds}
    # Examples differ in how many units they take: compare the same steps.
    steps = np.mean([len(units) + 1 for units in frozen])
    few_steps = np.mean([len(units) + 1 for units in slow])
    slow_for["frozen"] *= steps / few_steps
    return [
        _row(
            "resnet9 cifar10: slow twin / frozen, per example",
            slow_for["frozen"],
            100,
        ),
        _row(
            "resnet9 cifar10: slow twin / exact, per example",
            slow_seconds / exact_seconds,
        ),
        _row(
            "resnet9 cifar10: milliseconds per example, frozen",
            1e3 * frozen_seconds,
        ),
        _row("resnet9 cifar10: seconds per example, slow twin", slow_seconds),
        _row(
            "resnet9 cifar10: same units, exact and slow twin",
            _share(exact, slow),
        ),
        *_agreement(),
    ]


def _agreement() -> list[Row]:
    """How often other terms find what `exact` does, on the digits."""
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            folder,
            data=DataConfig(),
            model=ModelConfig(width=0.5, dropout="none"),
            training=TrainConfig(epochs=30, batch_size=128, learning_rate=0.1),
        )
        examples, model = run.examples(), run.model()
    ids = choose_ids(examples, count=30)
    found, seconds = {}, {}
    for term in ("frozen", "cached", "exact"):
        started = time.perf_counter()
        found[term] = find_critical_units(
            model,
            examples,
            SearchConfig(
                ids=tuple(ids.tolist()), population_term=term, bystanders=1
            ),
        )
        seconds[term] = time.perf_counter() - started
    frozen, cached, exact = (
        [set(u[u >= 0]) for u in one.units] for one in found.values()
    )
    sets = [found["frozen"], found["exact"]]
    size = [one.size for one in sets]
    return [
        _row(
            "digits: cached and exact take the same units",
            _share(cached, exact),
        ),
        _row(
            "digits: exact / cached, seconds of 60 examples",
            seconds["exact"] / seconds["cached"],
        ),
        _row(
            "digits: frozen and exact take the same units",
            _share(frozen, exact),
        ),
        _row(
            "digits: their first unit is the same",
            np.mean(sets[0].units[:, 0] == sets[1].units[:, 0]),
        ),
        _row(
            "digits: their sets are of the same size",
            np.mean(size[0] == size[1]),
        ),
    ]


def _share(one, other) -> float:
    """How many of the sets are the same."""
    return float(np.mean([a == b for a, b in zip(one, other, strict=True)]))


def _memorize(model, examples: Examples) -> None:
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs = data.as_arrays(examples)
    keras.utils.set_random_seed(0)
    model.fit(inputs, examples.label, batch_size=64, epochs=30, verbose=0)


def _timed(model, gates, examples, block, term):
    """Seconds per example of the greedy search, and the sets."""
    search = SearchConfig(
        population_term=term,
        population=_POPULATION,
        bystanders=1,
        limit=30,
    )
    gated = GatedModel(model, gates, examples, search)
    first_order = rankings.named("first_order")
    # Traces, and stops at the first example that is taken for wrong.
    wrong = block.take(np.array([0]))
    wrong = dataclasses.replace(wrong, label=(wrong.label + 1) % 10)
    greedy(gated, Sought.single(wrong), first_order)
    started = time.perf_counter()
    units, _, _ = greedy(gated, Sought.single(block), first_order)
    seconds = (time.perf_counter() - started) / len(block)
    return seconds, [row[row >= 0].tolist() for row in units]


def _one_at_a_time(model, gates, examples, one) -> list[int]:
    """A pass over the population for each removed unit, written plainly."""

    def logits(part, gate):
        inputs = arranged(model, data.as_arrays(part))
        with gates.applied(gate):
            return model(inputs, training=False)

    population = examples.train
    gate, removed = np.ones((1, gates.units), np.float32), []
    while np.argmax(logits(one, tf.constant(gate))) == one.label[0]:
        if len(removed) == 30:
            break
        variable = tf.Variable(gate)
        with tf.GradientTape() as tape:
            others = cross_entropy(
                tf.constant(population.label), logits(population, variable)
            )
            own = cross_entropy(tf.constant(one.label), logits(one, variable))
            objective = tf.reduce_mean(others) - own[0]
        score = tape.gradient(objective, variable).numpy()[0]
        score[removed] = -np.inf
        removed.append(int(score.argmax()))
        gate[0, removed[-1]] = 0
    return removed


def _row(metric: str, value: float, reach: float | None = None) -> Row:
    return Row(
        "critical_units",
        metric,
        float(value),
        float(value),
        float(value),
        1,
        reach,
        lower_is_better=False,
    )
