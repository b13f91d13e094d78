"""Removals that are told what to forget, and how durable removals are."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmemloc
from tests import toys
from tfmemloc import (
    DampeningConfig,
    DurabilityConfig,
    ForgettingConfig,
    GradientAscentConfig,
    NPOConfig,
    audit_durability,
)
from tfmemloc.audits import durability
from tfmemloc.gradients import GradientEngine, per_example_gradients
from tfmemloc.removal import (
    copies,
    critical_zeroing,
    forgetting,
    rem,
    scrub,
    second_order,
    subnet,
)
from tfmemloc.removal.dampening import squared_gradients
from tfmemloc.removal.scrub import divergence

TRAINING = {"epochs": 10, "learning_rate": 0.001, "batch_size": 40}
METHODS = {
    "fine-tuning": (tfmemloc.fine_tune, ForgettingConfig(**TRAINING)),
    "gradient difference": (
        tfmemloc.ascend_gradient,
        GradientAscentConfig(**TRAINING),
    ),
    "gradient ascent": (
        tfmemloc.ascend_gradient,
        GradientAscentConfig(**TRAINING, retain=0.0),
    ),
    "NPO": (tfmemloc.optimize_negative_preference, NPOConfig(**TRAINING)),
    "SCRUB": (tfmemloc.scrub, ForgettingConfig(**TRAINING)),
    "Durable": (tfmemloc.zero_weights, tfmemloc.DurableConfig(0.05)),
    "BalancedSubnet": (
        tfmemloc.mask_weights,
        tfmemloc.SubnetConfig(share=0.3, epochs=40, batch_size=40),
    ),
    "Subnet": (
        tfmemloc.mask_weights,
        tfmemloc.SubnetConfig(
            share=0.3, balanced=False, epochs=10, batch_size=40
        ),
    ),
    "critical units": (
        tfmemloc.zero_critical_units,
        tfmemloc.SearchConfig(),
    ),
    "second order": (
        tfmemloc.zero_held_weights,
        tfmemloc.SecondOrderConfig(share=0.05),
    ),
    "output editing": (
        tfmemloc.edit_outputs,
        tfmemloc.OutputEditConfig(**{**TRAINING, "learning_rate": 0.01}),
    ),
    "REM": (
        tfmemloc.forget_and_learn_again,
        tfmemloc.REMConfig(learning_rate=0.001, batch_size=40),
    ),
    "SSD": (tfmemloc.dampen_weights, DampeningConfig(alpha=2.0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_it_forgets_and_changes_nothing_given(
    name, overfitted, held_out_digits
):
    function, config = METHODS[name]
    weights = overfitted.get_weights()
    wrong = held_out_digits.of_subset("noisy").example_id
    model, result = function(overfitted, held_out_digits, config, forget=wrong)
    assert result.method == name and result.seconds > 0
    before, after = result.rows()
    assert before["noisy"] > 0.9
    assert after["noisy"] < before["noisy"] - 0.2
    for old, new in zip(weights, overfitted.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # What is reported is what the new network does.
    metrics = tfmemloc.evaluate(model, held_out_digits)
    assert after["test"] == metrics.of("test")["accuracy"]
    assert name in result.sentence()


def test_a_zeroed_unit_gives_nothing(overfitted, held_out_digits):
    model = copies.own_copy(overfitted)
    critical_zeroing._zero(model, model.layers[0].name, np.array([2, 5]))
    critical_zeroing._zero(model, "hidden", np.array([7]))
    pixels = tfmemloc.as_arrays(held_out_digits.train)["image"]
    outputs = [layer.output for layer in model.layers[2:5:2]]
    maps, hidden = keras.Model(model.inputs[0], outputs)(pixels)
    zero = np.flatnonzero(~np.any(maps, axis=(0, 1, 2)))
    assert {2, 5} <= set(zero) and len(zero) < 8
    assert not np.any(hidden[:, 7]) and np.any(hidden[:, 6])


def test_a_mask_leaves_out_the_share(rng):
    score = tf.constant(rng.normal(size=(10, 10)).astype(np.float32))
    kept = subnet._kept(score, 0.2).numpy()
    assert kept.sum() == 80
    assert score.numpy()[kept == 0].max() < score.numpy()[kept == 1].min()
    assert subnet._kept(score, 0.0).numpy().all()


def test_npo_stops_pushing_where_ascent_does_not(overfitted, held_out_digits):
    wrong = held_out_digits.of_subset("noisy").example_id
    losses = {}
    for name in ("NPO", "gradient ascent"):
        function, config = METHODS[name]
        config = dataclasses.replace(config, epochs=20, retain=0.0)
        _, result = function(overfitted, held_out_digits, config, forget=wrong)
        losses[name] = result.loss[1, result.subsets.index("noisy")]
    assert losses["NPO"] < 0.7 * losses["gradient ascent"]


def test_divergence_is_that_of_its_definition(rng):
    before, now = rng.normal(size=(2, 5, 3)).astype(np.float32)
    part = forgetting.Part(
        None, None, tf.constant(now), None, tf.constant(before)
    )
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (before, now))
    expected = np.mean([sum(p[i] * np.log(p[i] / q[i])) for i in range(5)])
    assert float(divergence(part)) == pytest.approx(expected, rel=1e-5)


def test_importance_is_the_mean_squared_gradient(overfitted, held_out_digits):
    some = held_out_digits.train.take(np.arange(7))
    engine = GradientEngine(overfitted)
    found = squared_gradients(engine, some, memory_budget=3_000_000)
    slow = [np.zeros(v.shape) for v in engine.variables]
    for i in range(7):
        inputs = {
            "image": tfmemloc.as_arrays(some)["image"][i : i + 1],
            "example_id": some.example_id[i : i + 1],
        }
        gradients = engine.gradients(inputs, some.label[i : i + 1])
        for total, gradient in zip(slow, gradients, strict=True):
            total += gradient[0].numpy() ** 2 / 7
    for a, b in zip(found, slow, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * b.max())


def test_second_order_scores_are_those_of_their_recursion(
    overfitted, held_out_digits
):
    config = tfmemloc.SecondOrderConfig(block=7, damping=1e-3)
    some = held_out_digits.of_subset("noisy").take(np.arange(5))
    found = second_order.expected_rise(overfitted, some, config)
    gradients = per_example_gradients(GradientEngine(overfitted), some)
    gradients = [g for g in gradients if g.ndim > 2]
    for (kernel, score), gradient in zip(found, gradients, strict=True):
        flat = gradient.reshape(5, -1).astype(np.float64)
        weight = kernel.numpy().ravel()
        # Two blocks, the last one, which is shorter, among them.
        last = len(weight) // 7 * 7
        for start in {0, last if last < len(weight) else last - 7}:
            place = slice(start, start + 7)
            inverse = np.eye(len(weight[place])) / config.damping
            for g in flat[:, place]:
                column = inverse @ g
                inverse -= np.outer(column, column) / (5 + g @ column)
            expected = weight[place] ** 2 / (2 * np.diag(inverse))
            np.testing.assert_allclose(
                score.ravel()[place], expected, rtol=1e-3
            )


def test_output_editing_moves_outgoing_weights_alone(
    overfitted, held_out_digits
):
    ids = held_out_digits.of_subset("noisy").example_id[:3]
    model, _ = tfmemloc.edit_outputs(
        overfitted,
        held_out_digits,
        tfmemloc.OutputEditConfig(epochs=2, batch_size=40),
        forget=ids,
    )
    units = critical_zeroing.critical_union(
        overfitted,
        held_out_digits,
        tfmemloc.SearchConfig(ids=tuple(ids.tolist())),
    )
    before = {v.path: v.numpy() for v in overfitted.trainable_variables}
    hidden, head = (
        model.get_layer(name).kernel.numpy() for name in ("hidden", "head")
    )
    moved = np.any(head != overfitted.get_layer("head").kernel.numpy(), axis=1)
    np.testing.assert_array_equal(np.flatnonzero(moved), units["hidden"])
    # Each row of `hidden` reads one of the 16 maps, in turn.
    moved = np.any(
        hidden != overfitted.get_layer("hidden").kernel.numpy(), axis=1
    )
    maps = units.get(overfitted.layers[0].name, np.zeros(0, int))
    assert set(np.flatnonzero(moved) % 16) == set(maps.tolist())
    for variable in model.trainable_variables:
        if not {"hidden", "head"} & set(variable.path.split("/")):
            np.testing.assert_array_equal(variable, before[variable.path])


def test_rem_gives_all_suspects_one_mask():
    inputs = {"example_id": tf.constant([4, 9, 5, 9], tf.int64)}
    found = rem.with_shared_id(inputs, np.array([9, 5]), 100)["example_id"]
    assert found.numpy().tolist() == [4, 100, 100, 100]


def test_retraining_leaves_them_out(tmp_path, held_out_digits):
    run = tfmemloc.train(
        tmp_path / "run",
        model=tfmemloc.ModelConfig("lenet", dropout="none"),
        training=tfmemloc.TrainConfig(epochs=1, batch_size=40),
        examples=held_out_digits,
        progress=False,
    )
    wrong = held_out_digits.of_subset("noisy").example_id
    tfmemloc.retrain_without(
        run, held_out_digits, forget=wrong, directory=tmp_path / "new"
    )
    new = tfmemloc.Run.open(tmp_path / "new")
    assert new.fingerprint["train"]["examples"] == 80 - len(wrong)
    bare = dataclasses.replace(run, model_config=None)
    with pytest.raises(ValueError, match="does not say how its network"):
        tfmemloc.retrain_without(bare, held_out_digits, forget=wrong)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "and not of all. Received: 0"),
        ([10**6], "no example with id"),
        ([1.5], "ids that are integers. Received: dtype float64"),
        ([True, False], "ids that are integers. Received: dtype bool"),
    ],
)
def test_bad_forget_sets_are_refused(ids, words, overfitted, held_out_digits):
    with pytest.raises(ValueError, match=words):
        scrub(overfitted, held_out_digits, forget=ids)


def test_to_forget_all_is_refused(overfitted, held_out_digits):
    ids = held_out_digits.train.example_id
    with pytest.raises(ValueError, match="and not of all. Received: 80 ids"):
        scrub(overfitted, held_out_digits, forget=ids)


def test_an_id_to_forget_may_come_twice(held_out_digits):
    a, b = held_out_digits.train.example_id[:2].tolist()
    forgotten, retained = forgetting.split(held_out_digits, [b, a, b])
    assert forgotten.example_id.tolist() == [a, b]
    assert len(retained) == len(held_out_digits.train) - 2


def test_rounding_goes_to_the_levels():
    weight = np.array([-7.0, 0.4, 0.6, 3.2], np.float32)
    # 4 bits: 7 levels on each side of 0, here the whole numbers.
    np.testing.assert_array_equal(durability.rounded(weight, 4), [-7, 0, 1, 3])
    zeros = np.zeros(3, np.float32)
    np.testing.assert_array_equal(durability.rounded(zeros, 4), zeros)


def test_pruning_takes_the_smallest():
    kernel = np.array([[3.0, -1.0], [0.5, 2.0]])
    np.testing.assert_array_equal(
        durability.pruned(kernel, 0.5), [[3, 0], [0, 2]]
    )
    bias = np.array([0.1, 5.0])
    np.testing.assert_array_equal(durability.pruned(bias, 0.5), bias)


def test_a_durability_audit(overfitted, held_out_digits):
    wrong = held_out_digits.of_subset("noisy").example_id
    model, _ = tfmemloc.fine_tune(
        overfitted, held_out_digits, ForgettingConfig(**TRAINING), forget=wrong
    )
    weights = model.get_weights()
    config = DurabilityConfig(
        steps=(1, 3), bits=(4,), pruned=(0.2,), batch_size=40
    )
    found = audit_durability(overfitted, model, held_out_digits, config)
    assert found.attacks == (
        "none",
        "rounding to 4 bits",
        "pruning 20%",
        "1 steps of training",
        "3 steps of training",
    )
    metrics = tfmemloc.evaluate(model, held_out_digits)
    assert found.after[0] == metrics.of("noisy")["accuracy"]
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    again = audit_durability(overfitted, model, held_out_digits, config)
    np.testing.assert_array_equal(found.after, again.after)


def test_an_audit_without_forgotten_examples_is_refused(
    overfitted, held_out_digits
):
    clean = held_out_digits.take(held_out_digits.subset != "noisy")
    with pytest.raises(
        ValueError, match="noisy or atypical or canary, and others"
    ):
        audit_durability(overfitted, overfitted, clean)


def test_the_planted_units_lost_most(tmp_path):
    """Of `memory` the edit changes the four units of the wrong labels."""
    run, examples = toys.memory_run(tmp_path / "run")
    critical = tfmemloc.find_critical_units(
        run, examples, tfmemloc.SearchConfig(layers=("memory",))
    )
    found = tfmemloc.compare_with_critical_units(
        run.model(), run.model(epoch=0), critical
    )
    assert found.lost[0] == pytest.approx(5 * 9 / (64 + 5 * 9))
    (row,) = (row for row in found.rows() if row["subset"] == "noisy")
    # Only 4 of 64 units changed; those found are among them.
    assert row["rank"] > 0.93
    assert "lost more than others of their layers" in found.sentence()
    other = dataclasses.replace(critical, layers=("nowhere",))
    with pytest.raises(ValueError, match="gated nowhere, which has no kernel"):
        tfmemloc.compare_with_critical_units(run.model(), run.model(), other)


def test_weights_that_are_not_finite_are_refused(overfitted, held_out_digits):
    wrong = held_out_digits.of_subset("noisy").example_id
    config = GradientAscentConfig(
        epochs=40, learning_rate=1e30, batch_size=40, retain=0.0
    )
    with pytest.raises(FloatingPointError, match="gradient ascent: the weig"):
        tfmemloc.ascend_gradient(
            overfitted, held_out_digits, config, forget=wrong
        )


def test_an_audit_without_test_examples_is_saved(
    tmp_path, overfitted, held_out_digits
):
    part = held_out_digits.take(held_out_digits.subset != "test")
    config = DurabilityConfig(steps=(), bits=(8,), pruned=())
    found = audit_durability(overfitted, overfitted, part, config)
    found.save(tmp_path / "durability")
    assert found.rows()[0]["after: test"] is None
