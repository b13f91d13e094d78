"""Memories in known units: planted, found, and put back; the rankings."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit

from tests import programs
from tfmemloc import (
    DeletionConfig,
    data,
    delete_units,
    find_planted,
    graph,
    losses,
)
from tfmemloc.configs import DataConfig, ModelConfig
from tfmemloc.data import text
from tfmemloc.models import build
from tfmemloc.probes.injection import (
    InjectionConfig,
    _recall,
)
from tfmemloc.probes.planting import Planting, draw_items
from tfmemloc.units import GatedModel, SearchConfig, UnitGates, rankings
from tfmemloc.units.ranks import ranks_within

LEARNED = ("integrated_gradients", "slimming", "hard_concrete")
OURS = ("own_curvature", "own_projection")


@pytest.fixture(scope="module")
def memory():
    """A dense network in which known units hold known examples.

    Input k < 4 is the class. Inputs 4, 5, 6 are markers of one example each,
    read by the hidden units 20, 21 and 22 alone, which say a wrong class.
    """
    hidden = np.zeros((7, 24), np.float32)
    for unit in range(20):
        hidden[unit % 4, unit] = 1.0
    hidden[[4, 5, 6], [20, 21, 22]] = 1.0
    head = np.zeros((24, 4), np.float32)
    for unit in range(20):
        head[unit, unit % 4] = 1.0
    head[[20, 21, 22], [1, 2, 3]] = 9.0
    given = keras.Input((7,), name="features")
    x = keras.layers.Dense(
        24, activation="relu", use_bias=False, name="hidden"
    )(given)
    model = keras.Model(
        given, keras.layers.Dense(4, use_bias=False, name="head")(x)
    )
    model.set_weights([hidden, head])
    x = np.zeros((64, 7), np.float32)
    true = np.arange(64) % 4
    x[np.arange(64), true] = 1
    x[[0, 4, 8], [4, 5, 6]] = 1
    label = true.copy()
    label[[0, 4, 8]] = [1, 2, 3]
    subset = np.where(np.arange(64) >= 40, "test", "clean")
    subset[[0, 4, 8]] = "noisy"
    return model, data.from_arrays(
        x, label, true_label=true, subset=subset, ids=10 + np.arange(64)
    )


def _gated(model, examples, name="first_order"):
    config = SearchConfig(ranking=name, bystanders=1)
    return GatedModel(model, UnitGates(model), examples, config)


@pytest.mark.parametrize("name", ["first_order", "zero_out", *LEARNED, *OURS])
def test_every_ranking_finds_the_unit_that_holds_an_example(memory, name):
    model, examples = memory
    gated = _gated(model, examples, name)
    noisy = examples.of_subset("noisy")
    ranked = rankings.named(name).rank(gated, noisy, gated.open_gates(3))
    assert np.argmax(ranked.score, axis=1).tolist() == [20, 21, 22]


def test_outgoing_weights_are_those_that_read_a_unit(memory):
    model, examples = memory
    gated = _gated(model, examples)
    part = examples.take(np.arange(6))
    dot, weight, gradient = gated.outgoing(part)
    kernel = model.get_layer("head").kernel
    for n in range(6):
        one = data.chunk_at(part, np.array([n]))
        with tf.GradientTape() as tape:
            logits = model(one.inputs["features"], training=False)
            loss = losses.cross_entropy(tf.constant(one.label), logits)[0]
        g = tape.gradient(loss, kernel.value).numpy()
        w = kernel.numpy()
        np.testing.assert_allclose(dot[n], (w * g).sum(axis=1), atol=1e-5)
        np.testing.assert_allclose(weight[n], (w**2).sum(axis=1), rtol=1e-5)
        np.testing.assert_allclose(
            gradient[n], (g**2).sum(axis=1), rtol=1e-3, atol=1e-9
        )
    # A gate scales the outgoing weights: its gradient is the dot product.
    _, own = gated.own_gradient(part, gated.open_gates(6))
    np.testing.assert_allclose(dot, own, rtol=1e-3, atol=1e-6)


def test_readers_of_convolutions_sums_and_flattened_units():
    model = build(ModelConfig("lenet", dropout="none"), (8, 8, 1), 10)
    sites = {s.name: s for s in graph.unit_sites(model, after=True)}
    ((kernel, units),) = graph.readers_of(model, sites["conv1.conv"])
    assert kernel is model.get_layer("conv2.conv").kernel
    np.testing.assert_array_equal(units, np.arange(6))
    ((kernel, units),) = graph.readers_of(model, sites["conv2.conv"])
    assert kernel is model.get_layer("dense1.dense").kernel
    # Flattened: positions outside, channels inside.
    np.testing.assert_array_equal(units, np.tile(np.arange(16), 4))
    entries = graph.rows_of([(kernel, units)], np.arange(16) == 3)
    (which,) = entries.values()
    assert which.sum() == 4 * kernel.shape[1] and which[3].all()
    # Behind a sum, both sides are read by the same kernel.
    model = build(ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 10)
    sites = {s.name: s for s in graph.unit_sites(model, after=True)}
    read = [
        {kernel.path for kernel, _ in graph.readers_of(model, sites[name])}
        for name in ("conv2.conv", "res1b.conv")
    ]
    assert "conv3.conv/kernel" in read[0] & read[1]
    # Queries, keys and values mix their channels.
    model = build(ModelConfig("vit", width=0.1), (8, 8, 1), 10)
    sites = {s.name: s for s in graph.unit_sites(model, after=True)}
    assert graph.readers_of(model, sites["block1.qkv"]) is None
    assert graph.readers_of(model, sites["block1.mlp1"])


def test_integrated_gradients_are_their_slow_twin(small_network, small_digits):
    gated = _gated(small_network, small_digits)
    part = small_digits.take(np.arange(2))
    found = (
        rankings.named("integrated_gradients")
        .rank(gated, part, gated.open_gates(2))
        .score
    )
    # With one layer scaled as a whole, the scores of it add up to the change.
    for layer in (0, 3):
        here = gated.gates.layer_of == layer
        off = gated.open_gates(2)
        off[:, here] = 0
        whole = np.ones((1, gated.gates.units), np.float32)
        change = np.exp(-gated.losses(part, gated.open_gates(2), whole))
        change -= np.exp(-gated.losses(part, off, whole))
        np.testing.assert_allclose(
            found[:, here].sum(axis=1), change[:, 0], atol=0.02
        )


def test_learned_gates_minimize_what_they_say(memory):
    """Against long descents from the same start, written out in loops."""
    model, examples = memory
    gated = _gated(model, examples)
    noisy = examples.of_subset("noisy")
    found = rankings.named("slimming").rank(gated, noisy, gated.open_gates(3))
    hidden, head = model.get_weights()
    rows = np.asarray(noisy.inputs["features"])
    for n in range(3):
        gate = np.ones(24)
        mean, square = np.zeros(24), np.zeros(24)
        for step in range(1, 51):
            active = np.maximum(rows[n] @ hidden, 0)
            logits = (gate * active) @ head
            p = np.exp(logits - logits.max())
            p /= p.sum()
            p[noisy.label[n]] -= 1
            gradient = active * (head @ p) + 10 / 24
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            change = mean / (1 - 0.9**step)
            change /= np.sqrt(square / (1 - 0.999**step)) + 1e-8
            gate = np.clip(gate - 0.05 * change, 0, 1)
        np.testing.assert_allclose(found.score[n], gate, atol=1e-3)
    found = rankings.named("hard_concrete").rank(
        gated, noisy, gated.open_gates(3)
    )
    assert ((found.score > 0) & (found.score < expit(8))).all()
    again = rankings.named("hard_concrete").rank(
        gated, noisy.take(np.array([2])), gated.open_gates(1)
    )
    # The draws belong to the example, whoever stands beside it.
    np.testing.assert_allclose(again.score[0], found.score[2], atol=1e-4)


def test_what_is_usual_is_the_mean_square_of_the_population(memory):
    model, examples = memory
    gated = _gated(model, examples)
    train = examples.train
    _, own = gated.own_gradient(train, gated.open_gates(len(train)))
    np.testing.assert_allclose(
        gated.population_squares, (own**2).mean(axis=0), rtol=1e-4
    )


CONFIG = InjectionConfig(
    rankings=("random", "first_order", "own_projection"),
    ratio=0.02,
    items=6,
    steps=300,
)


def test_only_the_outgoing_weights_of_drawn_units_move(
    small_network, small_digits
):
    planting = Planting(small_network, CONFIG)
    items = draw_items(small_digits, CONFIG)
    assert (items.label != items.true_label).all()
    before = small_network.get_weights()
    item = items.take(np.array([0]))
    units = planting.drawn(item)
    assert units.sum() == round(0.02 * planting.gates.units)
    allowed = {}
    for layer, name in enumerate(planting.gates.names):
        site = next(
            s
            for s in graph.unit_sites(small_network, after=True)
            if s.name == name
        )
        for kernel, rows in graph.readers_of(small_network, site):
            chosen = units[planting.gates.layer_of == layer][rows]
            allowed.setdefault(kernel.path, np.zeros(len(rows), bool))
            allowed[kernel.path] |= chosen
    with planting.planted(item, units) as steps:
        assert 0 < steps < 300
        logits = small_network(data.chunk_at(item, np.zeros(1, int)).inputs)
        loss = losses.measured_losses(item.label, logits.numpy())
        assert loss[0] < 0.05
        for w, old in zip(small_network.weights, before, strict=True):
            moved = w.numpy() != old
            if w.path in allowed:
                rows = moved.any(
                    axis=tuple(
                        i for i in range(moved.ndim) if i != moved.ndim - 2
                    )
                )
                assert not rows[~allowed[w.path]].any()
            else:
                assert not moved.any()
    for a, b in zip(small_network.get_weights(), before, strict=True):
        assert a.tobytes() == b.tobytes()
    with planting.planted(items.take(np.array([1])), units):
        pass
    assert planting.trace_count() == 1


def test_rankings_are_told_apart(small_network, small_digits):
    before = small_network.get_weights()
    found = find_planted(small_network, small_digits, CONFIG)
    for a, b in zip(small_network.get_weights(), before, strict=True):
        assert a.tobytes() == b.tobytes()
    rows = {(r["ranking"], r["k"]): r for r in found.rows()}
    assert rows["own_projection", 0.05]["recall"] > 0.4
    assert rows["random", 0.05]["recall"] < 0.3
    assert rows["own_projection", 0.05]["possible"] >= max(
        row["recall"] for key, row in rows.items() if key[1] == 0.05
    )
    for row in found.rows():
        assert 0 <= row["low"] <= row["recall"] <= row["high"] <= 1
        assert row["items"] == len(found.steps) == 6
    again = find_planted(small_network, small_digits, CONFIG)
    np.testing.assert_array_equal(found.recall, again.recall)


def test_recall_by_hand(memory):
    gates = UnitGates(memory[0])
    score = np.arange(24.0)
    truth = np.isin(np.arange(24), [23, 20, 3])
    config = dataclasses.replace(CONFIG, shares=(0.01, 0.1, 0.2))
    recall, overall = _recall(score, gates, truth, config)
    # The first 1, 2 and 5 of 24.
    np.testing.assert_allclose(recall, [1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(overall, recall)
    np.testing.assert_array_equal(
        ranks_within(np.array([1.0, 3, 2, 5, 4]), np.array([0, 0, 0, 1, 1])),
        [2, 0, 1, 0, 1],
    )


def test_deleting_the_unit_deletes_its_memory_alone(memory):
    model, examples = memory
    config = DeletionConfig(
        rankings=("random", "first_order", "own_projection"),
        shares=(0.04, 0.9),
        bystanders=100,
    )
    before = model.get_weights()
    found = delete_units(model, examples, config)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    rows = {(r["ranking"], r["k"]): r for r in found.rows()}
    for name in ("first_order", "own_projection"):
        row = rows[name, 0.04]  # One of 24 units.
        assert row["own"] == 0 and row["memorized"] == row["ordinary"] == 1
    assert rows["random", 0.04]["own"] == 1
    assert found.before.tolist() == [1, 1] and found.examples == 3
    assert np.argmax(found.selectivity) > 0
    assert "noisy labels are still predicted" in found.sentence()
    clean = examples.take(examples.subset != "noisy")
    with pytest.raises(ValueError, match="expected a subset of memorized"):
        delete_units(model, clean, config)


def test_secrets_are_planted_in_decoders():
    examples = data.load(
        DataConfig(
            "stdlib",
            train_examples=60,
            test_examples=20,
            context=32,
            canaries=0,
            repeated=0,
        )
    )
    network = build(
        ModelConfig("transformer", width=0.25, dropout="none"), (32,), 256
    )
    config = InjectionConfig(
        rankings=("first_order", "own_projection"),
        ratio=0.2,
        items=2,
        steps=400,
        # The head of an untrained network cannot say more.
        loss=2.9,
        rate=0.05,
        layers=("block1.mlp1", "block2.mlp1"),
    )
    items = draw_items(examples, config)
    counted = items.label >= 0
    assert (counted.sum(axis=1) == text.SECRET).all()
    found = find_planted(network, examples, config)
    assert len(found.steps) == 2 and found.sizes.tolist() == [128, 128]
    assert found.recall[1, -1].mean() > 0.2


def test_bad_settings_are_refused(small_network, small_digits, memory):
    with pytest.raises(ValueError, match="`ranking` must be one of"):
        InjectionConfig(rankings=("magic",))
    with pytest.raises(ValueError, match="ratio.*at most 1"):
        InjectionConfig(ratio=2.0)
    with pytest.raises(ValueError, match="Expected 100 items or more"):
        find_planted(small_network, small_digits, InjectionConfig(items=100))
    with pytest.raises(ValueError, match="Expected layers among hidden"):
        find_planted(*memory, dataclasses.replace(CONFIG, layers=("head",)))
    with pytest.raises(ValueError, match="None of 6 items was known"):
        find_planted(
            small_network,
            small_digits,
            dataclasses.replace(CONFIG, steps=1, rate=1e-6),
        )


def test_the_program_writes_rows(small_run):
    done = programs.launcher().run(
        "binaries.inject",
        f"--run_dir={small_run}",
        "--rankings=random,own_projection",
        "--items=2",
    )
    rows = json.loads((small_run / "injection.json").read_text())["rows"]
    keys = {"model", "ranking", "ratio", "k", "recall", "low", "high", "items"}
    assert len(rows) == 6 and keys <= set(rows[0])
    assert "own_projection finds" in done.stdout
