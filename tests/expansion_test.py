"""Networks expanded by memorization units, and given back without them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles
from tfmemloc import graph, prune_memorization
from tfmemloc.configs import ModelConfig
from tfmemloc.graph.tying import tie_dropout, tie_plan, with_inference
from tfmemloc.graph.untying import untie
from tfmemloc.layers.tied_dropout import MEMORY_OFF, ExampleTiedDropout
from tfmemloc.models import build

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def given():
    model = build(ModelConfig(width=0.125, dropout="none"), SHAPE, 10)
    oracles.randomize(model)
    return model


@pytest.fixture(scope="module")
def feed():
    image = np.random.default_rng(0).normal(size=(5, *SHAPE))
    return {
        "image": tf.constant(image, tf.float32),
        "example_id": tf.range(5, dtype=tf.int64),
    }


def _with_memory(model, **changes):
    """An expanded model that has learned something."""
    tied = tie_dropout(model, **{"expand": 0.5, **changes})
    for layer in graph.flat_layers(tied):
        if layer.name.endswith("recall"):
            shape = layer.kernel.shape
            layer.kernel.assign(np.random.default_rng(1).normal(size=shape))
    return tied


def test_an_expanded_network_begins_as_the_given_one(given, feed):
    tied = with_inference(tie_dropout(given, expand=0.5), "tied")
    np.testing.assert_array_equal(
        tied(feed, training=False), given(feed, training=False)
    )


def test_without_its_memory_it_is_the_given_one(given, feed):
    tied = _with_memory(given)
    expected = given(feed, training=False)
    np.testing.assert_array_equal(tied(feed, training=False), expected)
    remembered = with_inference(tied, "tied")(feed, training=False)
    assert np.abs(remembered - expected).max() > 1e-3


@pytest.mark.parametrize("strip", [prune_memorization, untie])
def test_stripping_gives_back_the_given_architecture(given, feed, strip):
    plain = strip(_with_memory(given))
    assert not graph.tied_layers(plain)
    names = [layer.name for layer in given.layers if layer.weights]
    assert [layer.name for layer in plain.layers if layer.weights] == names
    assert plain.count_params() == given.count_params()
    # The head of the built networks takes the ids, and does nothing with them.
    fed = feed["image"] if strip is prune_memorization else feed
    np.testing.assert_array_equal(
        plain(fed, training=False), given(feed, training=False)
    )


def test_untying_shares_the_layers_and_pruning_does_not(given):
    tied = _with_memory(given)
    assert untie(tied).get_layer("conv1.conv") is given.get_layer("conv1.conv")
    pruned = prune_memorization(tied)
    assert pruned.get_layer("conv1.conv") is not given.get_layer("conv1.conv")


def test_the_number_of_units_is_the_share_of_each_place(given):
    plan = tie_plan(tie_dropout(given, expand=0.5, p_mem=0.25))
    assert [row["memorization"] for row in plan] == [4, 8, 8, 16, 16, 8]
    assert {row["generalization"] for row in plan} == {0}
    assert [row["on"] for row in plan] == [1, 2, 2, 4, 4, 2]


def test_a_config_expands_the_built_networks():
    expanded = build(ModelConfig(width=0.125, expand=0.5), SHAPE, 10)
    plain = build(ModelConfig(width=0.125, dropout="none"), SHAPE, 10)
    assert prune_memorization(expanded).count_params() == plain.count_params()
    names = [layer.name for layer in graph.tied_layers(expanded)]
    assert names[0] == "conv1.dropout" and len(names) == 6


def test_memory_off_is_the_drop_in_the_middle_of_a_batch(given, feed):
    tied = with_inference(_with_memory(given), "tied")
    some_off = tf.where(feed["example_id"] < 2, MEMORY_OFF, feed["example_id"])
    found = tied({**feed, "example_id": some_off}, training=False).numpy()
    on = tied(feed, training=False).numpy()
    off = given(feed, training=False).numpy()
    np.testing.assert_allclose(found[:2], off[:2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2:], on[2:], rtol=1e-5, atol=1e-6)


def test_memory_off_keeps_the_generalization_units_alone():
    layer = ExampleTiedDropout(p_gen=0.5, p_mem=1.0)
    ids = tf.constant([3, MEMORY_OFF], tf.int64)
    found = layer(tf.ones([2, 4]), ids, training=True).numpy()
    np.testing.assert_array_equal(found, [[1, 1, 1, 1], [1, 1, 0, 0]])


def test_other_negative_ids_are_refused():
    layer = ExampleTiedDropout(p_gen=0.5)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="but for tfmemloc.MEMORY_OFF"
    ):
        layer(tf.ones([1, 4]), tf.constant([-1]), training=True)


def test_networks_without_batch_norm_get_none(rng):
    image = keras.Input((6,), name="row")
    x = keras.layers.Dense(8, "relu")(image)
    x = keras.layers.LayerNormalization()(x)
    model = keras.Model(image, keras.layers.Dense(3)(x))
    tied = _with_memory(model, expand=2.0)
    kinds = {type(layer).__name__ for layer in tied.layers}
    assert "BatchNormalization" not in kinds
    row = rng.normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        prune_memorization(tied)(row), model(row, training=False)
    )


def test_a_shared_layer_shares_its_memory(rng):
    image = keras.Input((6,), name="row")
    shared = keras.layers.Dense(6, "relu", name="shared")
    x = shared(shared(image))
    model = keras.Model(image, keras.layers.Dense(3)(x))
    tied = _with_memory(model, after=["shared"])
    row = {"row": tf.constant(rng.normal(size=(4, 6)), tf.float32)}
    row["example_id"] = tf.range(4, dtype=tf.int64)
    assert len(graph.tied_layers(tied)) == 1
    np.testing.assert_array_equal(
        untie(tied)(row["row"]), model(row["row"], training=False)
    )


def test_pretrained_networks_of_others_are_expanded(rng):
    base = keras.applications.MobileNetV3Small(
        weights=None, input_shape=(32, 32, 3), classes=4
    )
    tied = _with_memory(base)
    image = tf.constant(rng.uniform(0, 255, (2, 32, 32, 3)), tf.float32)
    pruned = prune_memorization(tied)
    assert pruned.count_params() == base.count_params()
    np.testing.assert_array_equal(
        pruned(image, training=False), base(image, training=False)
    )


def test_an_expanded_network_is_saved_and_read(given, feed, tmp_path):
    tied = _with_memory(given)
    tied.save(tmp_path / "tied.keras")
    again = keras.models.load_model(tmp_path / "tied.keras")
    np.testing.assert_array_equal(
        with_inference(again, "tied")(feed, training=False),
        with_inference(tied, "tied")(feed, training=False),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expand": 0.0}, "`expand` must be above 0"),
        ({"expand": float("nan")}, "`expand` must be above 0"),
        ({"p_gen": 0.5}, "Expected `expand` without `p_gen`"),
        ({"rescale": "mass"}, "Expected `expand` without `p_gen`"),
    ],
)
def test_what_does_not_fit_expanding_is_refused(given, changes, message):
    with pytest.raises(ValueError, match=message):
        tie_dropout(given, **{"expand": 0.5, **changes})


@pytest.mark.parametrize("after", ("blocks", "layers"))
def test_a_network_without_a_place_is_refused(after):
    image = keras.Input((6,), name="row")
    linear = keras.Model(image, keras.layers.Dense(3)(image))
    with pytest.raises(ValueError, match="has no blocks"):
        tie_dropout(linear, after)


def test_mass_needs_generalization_units():
    with pytest.raises(ValueError, match="Expected p_gen above 0"):
        ExampleTiedDropout(0.0, rescale="mass")


def test_units_are_asked_at_expanded_places_and_their_memory(given):
    names = graph.gated_names(_with_memory(given))
    assert names[:2] == ("conv1.relu", "conv1.relu_tied")
    assert names[4:6] == ("res1b.add", "res1b.add_tied")
    built = build(ModelConfig(width=0.125, expand=0.5), SHAPE, 10)
    assert graph.gated_names(built)[:2] == ("conv1.relu", "conv1.dropout")
    carved = build(ModelConfig(width=0.25), SHAPE, 10)
    assert graph.gated_names(carved)[0] == "conv1.dropout"


def test_a_planted_memory_is_found_among_the_added_units():
    """Each wrong label hangs on one memorization unit of its example."""
    from tests.toys import CLASSES, marked_examples
    from tfmemloc.probes.own_units import OwnUnitsConfig, find_own_units

    examples = marked_examples()
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(image)
    x = keras.layers.Dense(64, use_bias=False, name="first")(x)
    head = keras.layers.Dense(CLASSES, use_bias=False, name="last")
    given = keras.Model(image, head(x))
    tied = with_inference(
        tie_dropout(given, ["first"], expand=1.0, p_mem=1.0), "tied"
    )
    # Marker k comes twice, so that no unit of `first` decides alone; both
    # drive memorization unit k, which recalls the wrong label.
    first = np.eye(64, dtype=np.float32)
    memory, recall = np.zeros((2, 64, 64), np.float32)
    for k in range(5):
        first[CLASSES + k, 40 + k] = 1
        memory[[CLASSES + k, 40 + k], k] = 0.5
        recall[k, examples.label[k]] = 3
    for name, value in {
        "first": first,
        "last": 5 * np.eye(64, CLASSES, dtype=np.float32),
        "first_memory": memory,
        "first_recall": recall,
    }.items():
        layer = tied.get_layer(name)
        layer.set_weights([value, *[b * 0 for b in layer.get_weights()[1:]]])
    found = find_own_units(
        tied,
        examples,
        OwnUnitsConfig(count=5, inference="tied", bystanders=10),
        progress=False,
    )
    noisy = found.subset == "noisy"
    np.testing.assert_array_equal(found.size[noisy], 1)
    np.testing.assert_array_equal(found.own[noisy], 1)
    assert found.own_flips[noisy].all()
    # 64 units of the place and 64 of its memory are on for everyone.
    np.testing.assert_allclose(found.chance, 0.5)
