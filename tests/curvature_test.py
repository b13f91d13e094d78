"""Curvature factors, cuts of kernels, and the removal built on them."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmemloc
from tests import oracles, toys
from tfmemloc import (
    CurvatureConfig,
    Run,
    losses,
    predict_logits,
    remove_memory,
    storage,
)
from tfmemloc.configs import DataConfig
from tfmemloc.data import from_arrays, load
from tfmemloc.data.labels import hold_out
from tfmemloc.gradients import curvature, curvature_factors, kernels_of
from tfmemloc.removal.copies import own_copy
from tfmemloc.removal.curvature import bases as bases_
from tfmemloc.removal.curvature import choice

PLANTED = CurvatureConfig(keep=0.95, layers=("memory",), refit_epochs=0)


def _image_model(*layers):
    return keras.Sequential(
        [keras.Input((6, 5, 4)), *layers, keras.layers.Flatten()]
        + [keras.layers.Dense(3, name="head")]
    )


def _sequence_model(*layers):
    return keras.Sequential(
        [keras.Input((7, 4)), *layers, keras.layers.Flatten()]
        + [keras.layers.Dense(3, name="head")]
    )


def _attention_model():
    x = inputs = keras.Input((5, 4))
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = keras.layers.GlobalAveragePooling1D()(keras.ops.gelu(x))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def _shared_model():
    x = inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    x = keras.ops.tanh(shared(keras.ops.tanh(shared(x))))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def _nested_model():
    inner = keras.Sequential(
        [keras.Input((6, 5, 4)), keras.layers.Conv2D(3, 3, name="inner")],
        name="backbone",
    )
    return _image_model(inner, keras.layers.ReLU())


CONV = keras.layers.Conv2D
MODELS = {
    "dense": lambda: _sequence_model(keras.layers.Dense(5, name="d")),
    "activation": lambda: _sequence_model(
        keras.layers.Dense(5, activation="tanh", name="d")
    ),
    "einsum": lambda: _sequence_model(
        keras.layers.EinsumDense("abc,cde->abde", (7, 2, 3), name="e")
    ),
    "conv1d": lambda: _sequence_model(
        keras.layers.Conv1D(3, 3, padding="causal", dilation_rate=2, name="c")
    ),
    "conv2d": lambda: _image_model(CONV(3, 3, padding="same", name="c")),
    "strides": lambda: _image_model(CONV(3, (3, 2), strides=2, name="c")),
    "dilation": lambda: _image_model(
        CONV(3, 2, dilation_rate=2, use_bias=False, name="c")
    ),
    "groups": lambda: _image_model(CONV(6, 3, groups=2, name="c")),
    "one_by_one": lambda: _image_model(CONV(3, 1, strides=2, name="c")),
    "depthwise": lambda: _image_model(
        keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="c")
    ),
    "attention": _attention_model,
    "shared": _shared_model,
    "nested": _nested_model,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return toys.memory_run(tmp_path_factory.mktemp("curvature") / "run")


@pytest.fixture(scope="module")
def memory(planted):
    """The planted network; each marker in one of 185 training examples."""
    run, examples = planted
    clean = np.flatnonzero(examples.subset == "clean")
    index = np.concatenate([np.arange(len(examples)), np.tile(clean, 11)])
    return run.model(), dataclasses.replace(
        examples,
        inputs={"image": examples.inputs["image"][index]},
        label=examples.label[index],
        true_label=examples.true_label[index],
        subset=examples.subset[index],
        example_id=np.arange(len(index)),
    )


@pytest.mark.parametrize("name", MODELS)
def test_factors_are_those_of_the_slow_twin(name, rng):
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    x = rng.normal(size=(6, *model.input_shape[1:])).astype(np.float32)
    examples = from_arrays(x, np.arange(6) % 3)
    for found in curvature_factors(model, examples, scalar="labels"):
        inputs, outputs = oracles.slow_factors(
            model, found.kernel, x, examples.label
        )
        # Sums of float32 products; measured: 4e-7 of the largest.
        for one, other in ((found.inputs, inputs), (found.outputs, outputs)):
            largest = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * largest)


@pytest.mark.parametrize("name", ["groups", "depthwise", "attention"])
def test_a_kernel_is_its_matrices_and_back(name):
    model = MODELS[name]()
    examples = from_arrays(
        np.ones((2, *model.input_shape[1:]), np.float32), [0, 1]
    )
    for kernel in kernels_of(model, examples):
        matrices = kernel.as_matrices(kernel.variable.value)
        back = kernel.as_kernel(matrices[tf.newaxis])[0]
        np.testing.assert_array_equal(back, kernel.variable.value)


def test_chunks_add_up(small_network, small_digits):
    train = small_digits.train
    whole = curvature_factors(small_network, train)
    # 80 examples in chunks of a few.
    parts = curvature_factors(small_network, train, memory_budget=3_000_000)
    for one, other in zip(whole, parts, strict=True):
        for field in ("inputs", "outputs"):
            a, b = getattr(one, field), getattr(other, field)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * a.max())


def test_scalars_are_functions_of_the_ids(rng):
    keras.utils.set_random_seed(0)
    model = MODELS["dense"]()
    x = rng.normal(size=(9, 7, 4)).astype(np.float32)
    train = from_arrays(x, np.arange(9) % 3)
    backwards = train.take(np.arange(len(train))[::-1])
    for scalar in ("logits", "sampled"):
        one, other, new = (
            curvature_factors(model, e, scalar=scalar, seed=seed)[-1]
            for e, seed in ((train, 0), (backwards, 0), (train, 1))
        )
        np.testing.assert_allclose(one.outputs, other.outputs, atol=1e-5)
        assert not np.allclose(one.outputs, new.outputs, atol=1e-3)


def test_random_signs_weigh_all_logits_alike(planted):
    run, examples = planted
    head = curvature_factors(run.model(), examples.train)[-1]
    count = len(examples.train)
    np.testing.assert_allclose(np.diag(head.outputs[0]), count)


def test_keeping_all_is_the_identity(small_network, small_digits):
    train = small_digits.train
    for basis in bases_.kernel_bases(curvature_factors(small_network, train)):
        cut = basis.cut(1.0)
        assert cut.kernel is basis.value
        back = (
            basis.input_vectors
            @ basis.coefficients
            @ basis.output_vectors.swapaxes(1, 2)
        )
        # In float32; measured: 1e-6.
        matrices = basis.kernel.as_matrices(tf.constant(basis.value))
        np.testing.assert_allclose(back, matrices, rtol=0, atol=1e-5)


def test_a_cut_keeps_the_largest_curvatures():
    identity = np.eye(3, dtype=np.float32)[np.newaxis]
    kernel = tfmemloc.gradients.Kernel(
        None, "k", lambda w: w[tf.newaxis], lambda m: m[:, 0]
    )
    curvature = np.array([[[5, 0, 0], [0, 3, 0], [0, 0, 2]]], np.float32)
    value = np.ones((3, 3), np.float32)
    basis = bases_.KernelBasis(kernel, value, identity, identity, curvature)
    cut = basis.cut(0.75)
    np.testing.assert_array_equal(cut.kernel, np.diag([1, 1, 0]))
    assert cut.energy == pytest.approx(2 / 9)
    np.testing.assert_array_equal(basis.cut(0.5).kernel, np.diag([1, 0, 0]))


def test_it_takes_out_a_planted_memory(memory):
    model, examples = memory
    weights = model.get_weights()
    edited, result = remove_memory(model, examples, PLANTED)
    before, after = result.rows()
    assert before["noisy"] == 1 and before["noisy_true_label"] == 0
    assert after["noisy"] == 0 and after["noisy_true_label"] == 1
    assert after["clean"] == after["test"] == 1
    assert before["average_precision"] < after["average_precision"] == 1
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # Only what was named was cut.
    for i, name in enumerate(result.layers):
        same = np.array_equal(edited.get_weights()[i], weights[i])
        assert same == (name != "memory")
        assert (result.keep[0, i] < 1) == (name == "memory")


def test_what_a_protected_group_alone_uses_is_left(memory, tmp_path):
    model, examples = memory
    group = np.where(examples.subset == "noisy", "rare", "ordinary")
    examples = dataclasses.replace(examples, group=group)
    config = dataclasses.replace(PLANTED, keep=0.98)
    for protect, left in (((), 0.2), (("rare",), 1), ((), 0.2)):
        _, result = remove_memory(
            model,
            examples,
            dataclasses.replace(config, protect=protect),
            directory=tmp_path,  # What is kept of one is not taken for another.
        )
        after = result.rows()[1]
        assert after["noisy"] == pytest.approx(left) and after["clean"] == 1
    with pytest.raises(ValueError, match="group or subset rar. Expected `prot"):
        remove_memory(
            model, examples, dataclasses.replace(PLANTED, protect=("rar",))
        )


def test_protected_examples_keep_their_share_too(small_network, small_digits):
    of_all, few = small_digits.train, small_digits.train.take(np.arange(5))
    found = bases_.kept_bases(
        small_network, of_all, None, protected=few, scalar="logits", seed=0
    )
    for side, name in ((of_all, "curvature"), (few, "protected")):
        factors = tfmemloc.gradients.curvature_factors(small_network, side)
        for basis, one in zip(found, factors, strict=True):
            # The curvature along each pair of directions, one by one.
            u, v = basis.input_vectors[0], basis.output_vectors[0]
            expected = np.multiply.outer(
                [x @ one.inputs[0] @ x for x in u.T],
                [x @ one.outputs[0] @ x for x in v.T],
            )
            expected /= np.trace(one.inputs[0]) * np.trace(one.outputs[0])
            of_side = getattr(basis, name)[0]
            np.testing.assert_allclose(of_side, expected, 1e-3, 1e-6)
            # What is left of the kernel holds the share of either side.
            cut = basis.kernel.as_matrices(tf.constant(basis.cut(0.7).kernel))
            kept = np.abs(u.T @ cut.numpy()[0] @ v) > 1e-7
            assert of_side[kept].sum() >= 0.69 * of_side.sum()


def test_protected_examples_are_refitted_in_any_case(
    small_network, small_digits
):
    from tfmemloc.removal.curvature.refit import believed

    ids = small_digits.train.example_id
    wrong = dataclasses.replace(
        small_digits,
        label=(small_digits.label + np.arange(len(small_digits)) % 2) % 10,
    )
    few = believed(small_network, wrong, ids[:0]).train.example_id
    assert 0 < len(few) < len(ids)
    also = np.setdiff1d(ids, few)[:2]
    more = believed(small_network, wrong, also).train.example_id
    np.testing.assert_array_equal(np.sort(more), np.union1d(few, also))


def test_what_all_others_say_counts_as_much_as_the_network(
    small_network, small_digits
):
    """Against probabilities that are multiplied, one example at a time."""
    from tfmemloc.removal.curvature.others import said_by_others
    from tfmemloc.removal.curvature.refit import believed

    train = small_digits.train
    said = said_by_others(small_digits, 0)
    own = losses.log_softmax(predict_logits(small_network, train))
    expected = [
        train.example_id[k]
        for k in range(len(train))
        if np.argmax(np.exp(own[k]) * np.exp(said[k])) == train.label[k]
    ]
    none = train.example_id[:0]
    found = believed(small_network, small_digits, none, said).train
    np.testing.assert_array_equal(found.example_id, expected)
    # The network knows its wrong labels by heart; the others do not.
    alone = believed(small_network, small_digits, none).train
    assert (found.subset == "noisy").sum() < (alone.subset == "noisy").sum()


def test_refits_on_what_all_believe_forget_more(overfitted, held_out_digits):
    rows = {}
    for believe in ("network", "all"):
        config = CurvatureConfig(
            keep=0.985, refit_epochs=1, believe=believe, batch_size=40
        )
        _, result = remove_memory(overfitted, held_out_digits, config)
        rows[believe] = result.rows()[-1]
    assert rows["all"]["noisy"] < rows["network"]["noisy"]
    assert rows["all"]["noisy_true_label"] > rows["network"]["noisy_true_label"]


@pytest.mark.filterwarnings("ignore:Model .* the most frequent class")
@pytest.mark.parametrize("labels", ("given", "drawn"))
def test_all_are_asked_where_they_know_something(
    labels, overfitted, held_out_digits, rng
):
    """Of labels that follow from nothing, the network alone is."""
    examples = held_out_digits
    if labels == "drawn":
        drawn = rng.permutation(examples.label)
        examples = dataclasses.replace(examples, label=drawn)
    settings = {"keep": 0.985, "refit_epochs": 1, "rounds": 1}
    weights = {}
    for believe in ("auto", "network", "all"):
        config = CurvatureConfig(**settings, believe=believe)
        edited, result = remove_memory(overfitted, examples, config)
        weights[believe] = edited.get_weights()
    asked = "all" if labels == "given" else "network"
    for a, b in zip(weights["auto"], weights[asked], strict=True):
        np.testing.assert_array_equal(a, b)
    _, result = remove_memory(overfitted, examples, CurvatureConfig(**settings))
    assert result.believe == asked
    words = "network and all other examples believe" if asked == "all" else ""
    assert words in result.sentence()


def test_refits_augment_pictures(overfitted, held_out_digits, tmp_path):
    """By the library's own training; each way in a folder of its own."""
    config = CurvatureConfig(
        keep=0.985, refit_epochs=1, rounds=1, believe="network"
    )
    for way in ("none", "standard"):
        edited, _ = remove_memory(
            overfitted,
            held_out_digits,
            dataclasses.replace(config, augment=way),
            directory=tmp_path,
        )
        (folder,) = tmp_path.glob(
            "refit_1_*" if way == "none" else "refit_standard_1_*"
        )
        config_of = storage.read_json(folder / "config.json")
        assert config_of["training"]["augment"] == way
        weights = edited.get_weights()
        for a, b in zip(Run.open(folder).weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
    # The factors serve both.
    assert len(list(tmp_path.glob("factors_*"))) == 1


def test_refits_alone_measure_no_curvature(
    overfitted, held_out_digits, tmp_path, monkeypatch
):
    def measured(*args, **kwargs):
        raise AssertionError("Nothing is cut.")

    monkeypatch.setattr(bases_, "curvature_factors", measured)
    config = CurvatureConfig(
        keep=1.0, refit_epochs=1, rounds=1, believe="network"
    )
    edited, result = remove_memory(
        overfitted, held_out_digits, config, directory=tmp_path
    )
    assert result.layers and (result.keep == 1).all()
    assert (result.energy == 1).all() and result.believed[0] > 0
    assert not len(result.point_keep)
    (folder,) = tmp_path.glob("refit_1_*")
    # It began with the given weights, BatchNorm's statistics taken anew.
    began = Run.open(folder).weights(0)
    for variable, value in zip(overfitted.weights, began, strict=True):
        if "moving" not in variable.path:
            np.testing.assert_array_equal(variable.numpy(), value)
    with pytest.raises(ValueError, match="can be edited in nowhere. Expected"):
        remove_memory(
            overfitted,
            held_out_digits,
            dataclasses.replace(config, layers=("nowhere",)),
        )


def test_what_is_no_picture_is_not_augmented(rng):
    table = from_arrays(rng.normal(size=(8, 6)), np.arange(8) % 2)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    words = (
        "Expected `augment=\"none\"`. Received: 'standard', and the inputs f"
    )
    with pytest.raises(ValueError, match=words):
        remove_memory(model, table, CurvatureConfig(augment="standard"))


def test_next_tokens_are_not_believed_by_all(rng):
    tokens = from_arrays(rng.integers(0, 5, (8, 6)), rng.integers(0, 5, (8, 6)))
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int64"),
            keras.layers.Embedding(5, 4),
            keras.layers.Dense(5),
        ]
    )
    with pytest.raises(ValueError, match='use believe="network"'):
        remove_memory(model, tokens, CurvatureConfig(believe="all"))


def test_a_given_strength_needs_no_judge(planted):
    run, examples = planted
    config = dataclasses.replace(PLANTED, layers=None, keep=0.9)
    _, result = remove_memory(run, examples, config)
    assert len(result.point_keep) == 0 and result.judge == ""
    assert "Nothing was chosen: the strength was given" in result.sentence()
    np.testing.assert_array_equal(result.keep, [[0.9, 0.9, 1.0]])


def test_without_held_out_examples_all_others_choose(
    overfitted, held_out_digits, tmp_path
):
    """A fixed strength would take more from this network than memory."""
    from tfmemloc.removal.curvature.others import said_by_others

    examples = held_out_digits.take(held_out_digits.subset != "heldout")
    model, train = overfitted, examples.train
    config = CurvatureConfig(rounds=1, refit_epochs=0)
    edited, result = remove_memory(model, examples, config, directory=tmp_path)
    assert result.judge == "others"
    assert "by what all other examples say of training" in result.sentence()
    before, after = result.rows()
    assert before["noisy"] > 0.9 and after["noisy"] < 0.5
    assert after["test"] > before["test"] - 0.01
    fixed = dataclasses.replace(config, keep=0.9)
    (_, too_much) = remove_memory(model, examples, fixed)[1].rows()
    assert too_much["test"] < after["test"]
    # By hand: the mean probability of what the network predicts.
    chance = np.exp(said_by_others(examples, config.seed))
    predicted = predict_logits(model, train).argmax(axis=1)
    right = chance[np.arange(len(train)), predicted]
    assert result.point_heldout[0] == pytest.approx(right.mean(), abs=1e-6)
    again, _ = remove_memory(model, examples, config, directory=tmp_path)
    for one, other in zip(
        edited.get_weights(), again.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_held_out_examples_that_were_trained_on_are_noticed(
    overfitted, held_out_digits
):
    trained_on = held_out_digits.subset != "heldout"
    few = np.flatnonzero(trained_on & held_out_digits.is_trained_on)[::4]
    subset = held_out_digits.subset.astype(object)
    subset[few] = "heldout"
    lied = dataclasses.replace(
        held_out_digits.take(trained_on), subset=subset[trained_on]
    )
    config = CurvatureConfig(rounds=1, refit_epochs=0)
    with pytest.warns(UserWarning, match="these seem to have been, and cannot"):
        remove_memory(overfitted, lied, config)
    remove_memory(overfitted, held_out_digits, config)  # Which warns of none.


@pytest.mark.parametrize(
    ("changed", "passes"),
    [
        # Of 64 examples: six passes and 30 cuts on 64 + 16, and three epochs
        # of three, twice.
        ({}, 2 * (6 * 64 + 30 * 80 + 9 * 64)),
        ({"keep": 0.9}, 2 * (6 * 64 + 9 * 64)),
        ({"keep": 1.0}, 2 * 9 * 64),
        ({"refit_epochs": 0}, 6 * 64 + 30 * 80),
    ],
)
def test_the_expected_time_counts_passes(
    overfitted, held_out_digits, monkeypatch, changed, passes
):
    from tfmemloc.removal.curvature import expected

    train = held_out_digits.train.example_id[:64]
    held_out = held_out_digits.of_subset("heldout").example_id
    examples = held_out_digits.take(
        np.isin(held_out_digits.example_id, [*train, *held_out[:16]])
    )
    assert expected._seconds_of_one(overfitted, examples.train) > 0
    monkeypatch.setattr(expected, "_seconds_of_one", lambda *_: 0.5)
    found = expected.expected_seconds(
        overfitted, examples, CurvatureConfig(**changed)
    )
    assert found == pytest.approx(5 + passes / 2)


def test_other_labels_have_factors_of_their_own(planted, tmp_path):
    """A folder is not refused because labels were corrected."""
    run, examples = planted
    other = dataclasses.replace(examples, label=examples.true_label)
    alone, _ = remove_memory(run.model(), other, PLANTED)
    for each in (examples, other):
        found, _ = remove_memory(run.model(), each, PLANTED, directory=tmp_path)
    assert len(list(tmp_path.glob("factors_1_*"))) == 2
    for one, same in zip(found.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)


def test_others_who_know_nothing_choose_nothing(overfitted, held_out_digits):
    rng = np.random.default_rng(0)
    train = held_out_digits.train
    label = rng.integers(0, 10, len(train))
    examples = dataclasses.replace(
        train, label=label, true_label=label, subset=np.full(len(train), "a")
    )
    config = CurvatureConfig(rounds=1, refit_epochs=0)
    with pytest.warns(UserWarning, match="the most frequent class alone has"):
        _, result = remove_memory(overfitted, examples, config)
    assert result.judge == "" and (result.keep[0, :-1] == 0.9).all()
    assert "they know too little" in result.sentence()


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, held_out_digits, overfitted):
    model = overfitted
    folder = tmp_path_factory.mktemp("chosen")
    config = CurvatureConfig(rounds=1, refit_epochs=2, batch_size=40)
    edited, result = remove_memory(
        model, held_out_digits, config, directory=folder
    )
    return model, config, folder, edited, result


def test_the_choice_lowers_the_memory(chosen):
    *_, result = chosen
    before, after = result.rows()
    assert before["noisy"] > 0.9
    assert after["noisy"] < before["noisy"] - 0.3
    picked = np.flatnonzero(result.point_chosen)
    assert len(picked) == 1
    best = result.point_heldout.max()
    assert result.point_heldout[picked[0]] >= best - result.error[0]
    gap = np.maximum(0, result.point_train - result.point_heldout)
    allowed = result.point_heldout >= best - result.error[0]
    assert gap[picked[0]] == gap[allowed].min()
    assert {row["round"] for row in result.curve_rows()} == {1}
    assert set(result.figures()) == {
        "removal",
        "edit_curve",
        "edited_kernels",
    }


def test_a_finished_job_is_read_back(chosen, held_out_digits):
    model, config, folder, edited, result = chosen
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    again, other = remove_memory(
        model, held_out_digits, config, directory=folder
    )
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    for a, b in zip(again.get_weights(), edited.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other.point_heldout, result.point_heldout)


def test_true_labels_and_test_examples_choose_nothing(chosen, held_out_digits):
    model, config, _, _, result = chosen
    train = held_out_digits
    shuffled = dataclasses.replace(
        train,
        true_label=np.roll(train.true_label, 7),
        label=np.where(
            train.subset == "test", np.roll(train.label, 3), train.label
        ),
    )
    config = dataclasses.replace(config, refit_epochs=0)
    _, other = remove_memory(model, shuffled, config)
    np.testing.assert_array_equal(other.point_chosen, result.point_chosen)
    np.testing.assert_array_equal(other.keep, result.keep)


def test_factors_of_other_inputs_are_refused(chosen, held_out_digits):
    """Other ids or labels have factors of their own; see above."""
    model, config, folder, _, _ = chosen
    pixels = np.array(held_out_digits.inputs["image"])
    pixels[:, 0, 0] ^= 1
    other = dataclasses.replace(held_out_digits, inputs={"image": pixels})
    with pytest.raises(ValueError, match="curvature factors with other inp"):
        remove_memory(model, other, config, directory=folder)


def test_another_model_shares_no_factors(chosen, held_out_digits):
    model, config, folder, edited, _ = chosen
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    config = dataclasses.replace(config, refit_epochs=0, keep=0.9)
    remove_memory(edited, held_out_digits, config, directory=folder)
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    assert len(after) == len(before) + 1
    assert before.items() < after.items()


def test_one_function_measures_all_points(planted):
    run, examples = planted
    model, train = run.model(), examples.train
    bases = bases_.kernel_bases(curvature_factors(model, train))
    judge = choice.Judge.held_out(examples.test)
    trial = choice._Trial(model, bases, train, judge, 0)
    for keep in (1.0, 0.9, 0.5):
        trial.point(choice.Plan(("memory",), keep), 2)
    trial.sensitivities(progress=False)
    assert trial._predict.trace_count() == 1


@pytest.mark.parametrize(
    ("count", "numbers"), [(1, [0]), (2, [0, 1]), (9, [0, 1, 2, 4])]
)
def test_how_many_kernels_stay_whole(count, numbers):
    assert choice._numbers_left_whole(count) == numbers


@pytest.mark.parametrize(
    ("keep", "shares"),
    [
        (0.995, [0.9975, 0.99]),
        (0.85, [0.865, 0.825]),
        (0.5, [0.6]),
        (1.0, []),
    ],
)
def test_half_steps_around_a_share(keep, shares):
    assert choice._between(keep) == pytest.approx(shares)


def test_some_positions_are_enough(rng):
    keras.utils.set_random_seed(0)
    model = MODELS["conv2d"]()
    x = rng.normal(size=(300, 6, 5, 4)).astype(np.float32)
    examples = from_arrays(x, np.arange(300) % 3)
    whole, some, other = (
        curvature_factors(model, examples, positions=count, seed=seed)[0]
        for count, seed in ((None, 0), (12, 0), (12, 1))
    )
    np.testing.assert_array_equal(whole.outputs, some.outputs)
    assert not np.array_equal(some.inputs, other.inputs)
    scale = np.diag(whole.inputs[0]).mean()
    # 12 of 30 positions of 300 pictures; measured: 0.12 of the mean variance.
    assert np.abs(whole.inputs - some.inputs).max() < 0.25 * scale
    again = curvature_factors(model, examples, positions=30)[0]
    np.testing.assert_array_equal(whole.inputs, again.inputs)


def test_of_many_examples_fewer_positions_are_enough(rng, monkeypatch):
    keras.utils.set_random_seed(0)
    model = MODELS["conv2d"]()  # 36 inputs at 30 places, then 90 at one.
    x = rng.normal(size=(300, 6, 5, 4)).astype(np.float32)
    examples = from_arrays(x, np.arange(300) % 3)

    def factors(positions):
        return curvature_factors(model, examples, positions=positions)

    few = factors(7)
    # 7 places of 300 examples, or 2100 rows.
    monkeypatch.setattr(curvature, "_ROWS", 2000)
    monkeypatch.setattr(curvature, "_ROWS_EACH", 1)
    for one, other in zip(few, factors(20), strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
    # A wide kernel has more: 58 for each of 36 columns.
    monkeypatch.setattr(curvature, "_ROWS", 1)
    monkeypatch.setattr(curvature, "_ROWS_EACH", 58)
    np.testing.assert_array_equal(few[0].inputs, factors(20)[0].inputs)
    # Who asks for all gets all, and nobody fewer than a few.
    assert not np.array_equal(few[0].inputs, factors(None)[0].inputs)
    monkeypatch.setattr(curvature, "_ROWS_EACH", 1)
    np.testing.assert_array_equal(factors(4)[0].inputs, factors(20)[0].inputs)


def test_a_choice_can_be_written_and_read():
    plan = choice.Plan(("a", "b"), 0.9)
    point = choice.Point(plan, 1, 0.5, 0.8, 0.02, 0.9, None)
    made = choice.Choice((point,), 0, 0.02, {"a": 0.1})
    back = choice.Choice.from_json(dataclasses.asdict(made))
    assert back.plan == plan and back.error == made.error


def test_bad_requests_are_refused(planted, tmp_path):
    run, examples = planted
    with pytest.raises(ValueError, match="be edited in conv9. Expected some"):
        remove_memory(
            run, examples, dataclasses.replace(PLANTED, layers=("conv9",))
        )
    with pytest.raises(ValueError, match="has no training examples"):
        remove_memory(run.model(), examples.test, PLANTED)
    with pytest.raises(ValueError, match="has 9 classes, but model"):
        remove_memory(
            run.model(), dataclasses.replace(examples, classes=9), PLANTED
        )
    frozen = run.model()
    frozen.trainable = False
    with pytest.raises(ValueError, match="no kernel whose curvature is known"):
        remove_memory(frozen, examples, PLANTED)
    with pytest.raises(ValueError, match="`keep` must be at least"):
        CurvatureConfig(keep=0.0)


def test_held_out_examples_keep_their_labels():
    config = DataConfig(noise_rate=0.2, heldout=0.25)
    examples, plain = load(config), load(DataConfig(noise_rate=0.2))
    held_out = examples.of_subset("heldout")
    assert len(held_out) == int(0.25 * len(plain.train))
    assert len(examples.train) + len(held_out) == len(plain.train)
    same = plain.of_ids(held_out.example_id)
    np.testing.assert_array_equal(held_out.label, same.label)
    assert (held_out.label != held_out.true_label).mean() == pytest.approx(
        0.2, abs=0.06
    )
    # A function of seed and id, whatever the order.
    backwards = plain.take(np.arange(len(plain))[::-1])
    again = hold_out(backwards, 0.25, seed=0).of_subset("heldout")
    assert set(again.example_id) == set(held_out.example_id)
    other = hold_out(plain, 0.25, seed=1).of_subset("heldout")
    assert set(other.example_id) != set(held_out.example_id)


def test_holding_out_all_or_none_is_refused(small_digits):
    with pytest.raises(ValueError, match="would leave one side empty"):
        hold_out(small_digits, 0.001, seed=0)


def test_a_kernel_that_reaches_no_output_is_left_alone(tmp_path, rng):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, name="used")(inputs)
    spare = keras.layers.Dense(5, name="spare")(inputs)
    stopped = keras.ops.stop_gradient(spare)
    x = keras.layers.Concatenate()([hidden, stopped])
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    values = rng.normal(size=(8, 4)).astype(np.float32)
    # As if it had learned something.
    label = model.predict(values, verbose=0).argmax(axis=1)
    examples = from_arrays(values, label, classes=2)
    config = CurvatureConfig(keep=0.5, layers=("used",), refit_epochs=0)
    for _ in range(2):  # Computed, and read back.
        edited, result = remove_memory(
            model, examples, config, directory=tmp_path
        )
        assert result.layers == ("used", "head")
        for name in ("spare", "head"):
            np.testing.assert_array_equal(
                edited.get_layer(name).kernel, model.get_layer(name).kernel
            )


def test_factors_lie_where_they_are_found(planted, tmp_path):
    run, examples = planted
    config = dataclasses.replace(PLANTED, keep=0.6)
    remove_memory(run, examples, PLANTED, directory=tmp_path)
    (path,) = tmp_path.glob("factors_1_*/bases.npz")
    stamp = path.stat().st_mtime_ns
    _, result = remove_memory(run, examples, config, directory=tmp_path)
    assert path.stat().st_mtime_ns == stamp
    assert result.keep.min() == 0.6
    assert storage.read_arrays(path)


def test_copies_keep_shared_layers_and_lambdas(rng):
    shared = keras.layers.Dense(4, name="shared")
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, shared(inner_input), name="inner")
    inputs = keras.Input((4,))
    x = keras.layers.Lambda(lambda t: 2 * t)(shared(inner(inputs)))
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    copy = own_copy(model)
    values = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(copy(values), model(values))
    assert len(copy.weights) == len(model.weights)
    for weight in copy.weights:
        weight.assign(weight * 0)
    assert np.any(model(values))


def test_factors_of_two_layers_of_one_name_are_told_apart(rng):
    def tower():
        x = inputs = keras.Input((4,))
        x = keras.layers.Dense(4, name="conv1")(x)
        return keras.Model(inputs, x)

    inputs = keras.Input((4,))
    towers = [tower()(inputs), tower()(inputs)]
    x = keras.layers.Concatenate()(towers)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    values = rng.normal(size=(9, 4)).astype(np.float32)
    examples = from_arrays(values, np.arange(9) % 2)
    names = [kernel.name for kernel in kernels_of(model, examples)]
    assert names == ["conv1#1", "conv1#2", "head"]


def test_next_tokens_are_edited_and_refitted(rng):
    tokens = rng.integers(1, 9, (60, 5))
    subset = np.repeat(["clean", "heldout"], [40, 20])
    examples = from_arrays(tokens, subset=subset, classes=9)
    inputs = keras.Input((5,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(9, 8)(inputs)
    x = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    model = keras.Model(inputs, keras.layers.Dense(9, name="head")(x))
    config = CurvatureConfig(refit_epochs=1, batch_size=20)
    _, result = remove_memory(model, examples, config)
    # Held-out texts choose in both rounds.
    assert set(result.point_round) == {0, 1}
    assert np.all(result.believed <= 40)


def test_positions_that_do_not_count_are_left_out(rng):
    tokens = rng.integers(1, 9, (30, 6))
    label = np.where(np.arange(6) < 4, np.roll(tokens, -1, axis=1), -1)
    other = tokens.copy()
    other[:, 5] = 3  # Reaches no label that counts.
    inputs = keras.Input((6,), dtype="int64", name="tokens")
    x = keras.layers.Embedding(9, 8)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(9, name="head")(x))
    one, two = (
        curvature_factors(model, from_arrays(t, label, classes=9))[0]
        for t in (tokens, other)
    )
    np.testing.assert_allclose(one.inputs, two.inputs, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_summed_in_full(rng, dtype):
    inputs = keras.Input((6,), name="features")
    dense = keras.layers.Dense(3, dtype=dtype)
    model = keras.Model(inputs, dense(inputs))
    # Their squares add up to more than float16 holds.
    x = 30 * rng.normal(size=(500, 6)).astype(np.float32)
    examples = tfmemloc.from_arrays(x, np.arange(500) % 3)
    (factors,) = tfmemloc.gradients.curvature_factors(model, examples)
    rounded = tf.cast(x, dense.compute_dtype).numpy().astype(np.float64)
    np.testing.assert_allclose(
        factors.inputs[0], rounded.T @ rounded, rtol=1e-5, atol=0.1
    )


def test_a_rare_class_that_goes_with_the_memory_is_warned_of():
    from tfmemloc.removal.curvature.checks import warn_of_lost_classes

    before = np.array([1.0, 0.9, 0.8, 1.0, np.nan])
    after = np.array([1.0, 0.9, 0.1, 0.3, np.nan])
    rare, even = np.array([90, 90, 9, 9, 0]), np.array([90, 90, 90, 90, 0])
    shares = np.stack([before, after])
    with pytest.warns(UserWarning, match=r"lost the class 2 \(80% .* 10% now"):
        warn_of_lost_classes("net", shares, rare)
    # Of a frequent class the table says it, and nothing was lost here.
    warn_of_lost_classes("net", shares, even)
    warn_of_lost_classes("net", np.stack([before, before]), rare)


def test_a_rare_class_is_lost_and_protected():
    """Eight pictures of a digit among 1,600: what protect is for."""
    digits = load(DataConfig(noise_rate=0.0))
    x = digits.inputs["image"].reshape(len(digits), -1).astype(np.float32) / 255
    y = digits.label
    kept = (y != 8) | (np.cumsum(y == 8) <= 8)
    x, y = x[kept], y[kept]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(x, y, epochs=40, verbose=0)
    group = np.where(y == 8, "rare", "usual")
    examples = from_arrays(x, y, group=group)
    config = CurvatureConfig(keep=0.8, refit_epochs=0)
    with pytest.warns(UserWarning, match="lost the class 8"):
        remove_memory(model, examples, config)
    # A warning would be an error here.
    remove_memory(
        model, examples, dataclasses.replace(config, protect=("rare",))
    )
