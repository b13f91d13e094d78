"""Tied layers in other people's models, and taken out again."""

import keras
import numpy as np
import pytest

from tfmemloc import graph
from tfmemloc.configs import ModelConfig
from tfmemloc.graph.inputs import arranged
from tfmemloc.graph.tying import tie_dropout, tie_plan
from tfmemloc.graph.untying import untie
from tfmemloc.layers.tied_dropout import MEMORY_OFF, ExampleTiedDropout
from tfmemloc.models import build
from tfmemloc.report import text_table


def _feed(model, rng, count=3):
    feed = {}
    for tensor in keras.tree.flatten(graph.inputs_of(model)):
        if tensor.name == "example_id":
            feed[tensor.name] = np.arange(count)
        elif "int" in tensor.dtype:
            feed[tensor.name] = rng.integers(0, 9, (count, *tensor.shape[1:]))
        else:
            shape = (count, *tensor.shape[1:])
            feed[tensor.name] = rng.normal(size=shape).astype(np.float32)
    return feed


def _small(name):
    """A network of Keras's own, as small as it gets."""
    return getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=4
    )


def _text_classifier():
    """Tokens through an embedding and two transformer blocks."""
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(20, 16, mask_zero=True)(tokens)
    for block in range(2):
        attended = keras.layers.MultiHeadAttention(
            2, 8, name=f"attention{block}"
        )(x, x)
        x = keras.layers.LayerNormalization(name=f"norm{block}a")(x + attended)
        inner = keras.layers.Dense(32, "relu", name=f"up{block}")(x)
        inner = keras.layers.Dense(16, name=f"down{block}")(inner)
        x = keras.layers.LayerNormalization(name=f"norm{block}b")(x + inner)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(4)(x))


def _two_in_two_out():
    a = keras.Input((8,), name="a")
    b = keras.Input((6,), name="b")
    x = keras.layers.Dense(10, "relu", name="of_a")(a)
    y = keras.layers.Dense(10, "relu", name="of_b")(b)
    both = keras.layers.Concatenate()([x, y])
    z = keras.layers.Dense(12, "relu", name="both")(both)
    return keras.Model(
        [a, b],
        {
            "first": keras.layers.Dense(2, name="first")(z),
            "second": keras.layers.Dense(3, name="second")(z),
        },
    )


def _nested_and_shared():
    inner_input = keras.Input((8,))
    x = keras.layers.Dense(10, "relu", name="inner1")(inner_input)
    x = keras.layers.Dense(8, "relu", name="inner2")(x)
    inner = keras.Model(inner_input, x, name="inner")
    inputs = keras.Input((8,), name="image")
    x = inner(inner(inputs))
    return keras.Model(inputs, keras.layers.Dense(4, name="out")(x))


MODELS = {
    "ResNet50": (lambda: _small("ResNet50"), "blocks"),
    "MobileNetV3Small": (lambda: _small("MobileNetV3Small"), "blocks"),
    "EfficientNetB0": (lambda: _small("EfficientNetB0"), "blocks"),
    "ConvNeXtTiny": (lambda: _small("ConvNeXtTiny"), "blocks"),
    "text": (_text_classifier, "blocks"),
    "two_in_two_out": (_two_in_two_out, ["of_a", "both"]),
    "nested": (_nested_and_shared, ["inner1", "inner2"]),
    "nested_whole": (_nested_and_shared, ["inner"]),
    "sequential": (
        lambda: keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(10, "relu", name="hidden"),
                keras.layers.Dense(4),
            ]
        ),
        "blocks",
    ),
    "ours": (
        lambda: build(ModelConfig(width=0.25, dropout="none"), (8, 8, 1), 4),
        "blocks",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_tied_models_fit_save_and_come_apart(name, rng, tmp_path):
    make, after = MODELS[name]
    model = make()
    feed = _feed(model, rng)
    plain_feed = _own(model, feed)
    expected = model(plain_feed, training=False)
    tied = tie_dropout(model, after, p_gen=0.5, p_mem=0.5)
    layers = graph.tied_layers(tied)
    assert len({layer.seed for layer in layers}) == len(layers) > 0
    # All weights are those of the model.
    assert {id(w) for w in tied.weights} == {id(w) for w in model.weights}
    # Taken out again, the network is the old one.
    again = untie(tied)
    assert [t.name for t in keras.tree.flatten(again.input)] == [
        t.name for t in keras.tree.flatten(graph.inputs_of(model))
    ]
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        again(plain_feed, training=False),
        expected,
    )
    # An ordinary fit, with ids. Tracing the large takes a minute.
    large = hasattr(keras.applications, name)
    tied.compile("sgd", "mse", run_eagerly=large)
    tied_feed = _own(tied, {**feed, "example_id": np.arange(3)})
    target = keras.tree.map_structure(np.zeros_like, expected)
    history = tied.fit(tied_feed, target, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    tied.save(tmp_path / "tied.keras")
    loaded = keras.models.load_model(tmp_path / "tied.keras")
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        loaded(tied_feed, training=False),
        tied(tied_feed, training=False),
    )


def _own(model, feed):
    """A feed in the structure of a model's inputs."""
    return keras.tree.map_structure(
        lambda t: feed[t.name], graph.inputs_of(model)
    )


def test_ids_are_put_beside_any_inputs():
    single = tie_dropout(_text_classifier())
    assert set(single.input) == {"tokens", "example_id"}
    several = tie_dropout(_two_in_two_out(), ["both"])
    assert [t.name for t in several.input] == ["a", "b", "example_id"]
    assert set(several.output) == {"first", "second"}
    ours = tie_dropout(build(ModelConfig(dropout="none"), (8, 8, 1), 4))
    assert set(ours.input) == {"image", "example_id"}


def test_blocks_of_a_transformer_end_after_its_sums():
    tied = tie_dropout(_text_classifier(), p_gen=0.5)
    names = [layer.name for layer in graph.tied_layers(tied)]
    assert len(names) == 4
    assert names[-1] == "norm1b_tied"


def test_the_plan_is_a_table():
    tied = tie_dropout(
        _two_in_two_out(), ["of_a", "both"], p_gen=0.5, p_mem=0.5
    )
    assert tie_plan(tied) == [
        {
            "layer": "of_a_tied",
            "units": 10,
            "generalization": 5,
            "memorization": 5,
            "on": 7.5,
        },
        {
            "layer": "both_tied",
            "units": 12,
            "generalization": 6,
            "memorization": 6,
            "on": 9.0,
        },
    ]
    assert "generalization" in text_table(tie_plan(tied), percent=False)
    name = tied.name
    assert repr(tied) == (
        f"<TiedModel name={name}, places tied: 2 (after of_a, both)>"
    )
    dropped = graph.with_inference(tied, "tied")
    assert "places tied: 2" in repr(dropped)


def test_a_predicate_chooses_layers():
    tied = tie_dropout(
        _two_in_two_out(),
        lambda layer: isinstance(layer, keras.layers.Concatenate),
    )
    (layer,) = graph.tied_layers(tied)
    assert layer.units == 20


def test_a_shared_nested_model_has_one_mask(rng):
    model = _nested_and_shared()
    tied = graph.with_inference(
        tie_dropout(model, ["inner1"], p_gen=0.5, p_mem=0.5), "tied"
    )
    (layer,) = graph.tied_layers(tied)
    image = rng.normal(size=(3, 8)).astype(np.float32)
    ids = np.arange(3)
    inner = model.get_layer("inner")
    first, second = inner.get_layer("inner1"), inner.get_layer("inner2")
    on = layer.example_units(ids)
    x = second(first(image) * on)
    x = second(first(x) * on)
    np.testing.assert_allclose(
        tied({"image": image, "example_id": ids}),
        model.get_layer("out")(x),
        atol=1e-5,
    )


def test_ids_that_are_not_passed_to_fit(rng):
    tied = tie_dropout(_text_classifier(), p_gen=0.5)
    tied.compile("sgd", "mse")
    tokens = rng.integers(0, 9, (4, 12))
    with pytest.raises(ValueError, match="example_id"):
        tied.fit({"tokens": tokens}, np.zeros((4, 4)), verbose=0)


class _Own(keras.Model):
    """Somebody's subclassed model."""

    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("make", "after", "words"),
    [
        (_Own, "blocks", "In a subclassed model, create ExampleTiedDropout"),
        (_text_classifier, ["up7"], "has no layer up7. Expected some of"),
        (_text_classifier, "block", "Received: after=.block."),
        (_text_classifier, lambda layer: False, "chooses no layer"),
        (lambda: tie_dropout(_text_classifier()), "blocks", "tied layers al"),
    ],
)
def test_models_that_cannot_be_tied(make, after, words):
    with pytest.raises(ValueError, match=words):
        tie_dropout(make(), after)


def test_models_that_cannot_be_untied():
    with pytest.raises(ValueError, match="no ExampleTiedDropout layer to take"):
        untie(_text_classifier())


def test_an_input_that_is_no_id():
    inputs = keras.Input((3,), name="example_id")
    x = keras.layers.Dense(8, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.raises(ValueError, match="Expected int64 of shape"):
        tie_dropout(model, ["hidden"])


def test_ids_of_fewer_bits_are_refused():
    """MEMORY_OFF would be 0 in them, and large ids would be small ones."""
    row = keras.Input((8,), name="row")
    ids = keras.Input((), dtype="int32", name="example_id")
    x = keras.layers.Dense(8, name="hidden")(row)
    model = keras.Model([row, ids], keras.layers.Dense(2)(x))
    with pytest.raises(ValueError, match="dtype int32. Expected int64"):
        tie_dropout(model, ["hidden"])
    by_hand = keras.Model(
        [row, ids], ExampleTiedDropout(0.5, 0.5, seed=0)(x, ids)
    )
    given = {"row": np.zeros((2, 8)), "example_id": np.array([0, MEMORY_OFF])}
    with pytest.raises(ValueError, match="takes the example ids as int32"):
        arranged(by_hand, given)


def test_layers_too_narrow_to_tie():
    with pytest.raises(ValueError, match="no generalization units"):
        tie_dropout(_two_in_two_out(), ["of_a"], p_gen=0.05)


def test_by_hand_in_a_subclassed_model_and_a_tape_loop(rng):
    """As in the README."""

    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(32, "relu")
            self.tied = ExampleTiedDropout(p_gen=0.25, p_mem=0.25, seed=1)
            self.out = keras.layers.Dense(2)

        def call(self, inputs, training=None):
            x = self.hidden(inputs["image"])
            x = self.tied(x, inputs["example_id"], training=training)
            return self.out(x)

    model = Classifier()
    model.compile("adam", "mse")
    feed = {
        "image": rng.normal(size=(6, 5)).astype(np.float32),
        "example_id": np.arange(6),
    }
    history = model.fit(feed, np.zeros((6, 2)), epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]


@pytest.mark.parametrize("behaviour", ["drop", "expected"])
@pytest.mark.parametrize("make", [_text_classifier, _two_in_two_out])
def test_no_ids_are_needed_where_they_do_not_count(
    make, behaviour, rng, tmp_path
):
    tied = tie_dropout(make(), "layers", p_gen=0.5)
    model = graph.with_inference(tied, behaviour)
    feed = _feed(model, rng)
    expected = model.predict(feed, verbose=0)
    ids = feed.pop("example_id")
    given = next(iter(feed.values())) if len(feed) == 1 else feed
    model.save(tmp_path / "tied.keras")
    loaded = keras.saving.load_model(tmp_path / "tied.keras")
    for network in (model, loaded):
        keras.tree.map_structure(
            np.testing.assert_array_equal,
            network.predict(given, verbose=0),
            expected,
        )
    for network in (graph.with_inference(model, "tied"), loaded):
        training = network is loaded
        with pytest.raises(ValueError, match="without example ids, and"):
            network(given, training=training)
        network({**feed, "example_id": ids}, training=training)


def test_keras_validates_without_ids(rng):
    model = tie_dropout(_text_classifier(), p_gen=0.5)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    x, y = rng.integers(0, 9, (6, 12)), np.arange(6) % 4
    feed = {"tokens": x, "example_id": np.arange(6)}
    history = model.fit(feed, y, validation_data=(x, y), verbose=0).history
    # The validation comes after the epoch's last step.
    found = model.evaluate(x, y, verbose=0)
    assert history["val_loss"] == pytest.approx([found])
    assert found == model.evaluate(feed, y, verbose=0)
    with pytest.raises(ValueError, match="which memorization units an examp"):
        model.fit(x, y, verbose=0)


def test_a_network_without_tied_layers_needs_no_ids(rng):
    model = build(ModelConfig("lenet", width=0.5, dropout="none"), (8, 8, 1), 4)
    x = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    feed = {"image": x, "example_id": np.arange(3)}
    for training in (False, True):
        np.testing.assert_array_equal(
            model(x, training=training), model(feed, training=training)
        )


@pytest.mark.parametrize("dtype", ("float32", "float64", "bool"))
def test_ids_that_are_no_integers_are_refused_before_keras_casts_them(dtype):
    tied = tie_dropout(_two_layers(), ["hidden"])
    x, ids = np.zeros((4, 8), np.float32), np.arange(4)
    for given in (
        {"row": x, "example_id": ids.astype(dtype)},
        [x, ids.astype(dtype)],
        {"row": x, "example_id": ids[:, np.newaxis]},
    ):
        with pytest.raises(ValueError, match="ids that are integers of shape"):
            tied(given, training=True)
    tied.compile("sgd", "mse")
    bad = {"row": x, "example_id": ids.astype(dtype)}
    with pytest.raises(ValueError, match="ids that are integers of shape"):
        tied.fit(bad, np.zeros((4, 2)), verbose=0)
    good = {"row": x, "example_id": ids}
    tied.fit(good, np.zeros((4, 2)), verbose=0)  # It is as it was.


def _two_layers():
    row = keras.Input((8,), name="row")
    x = keras.layers.Dense(8, name="hidden")(row)
    x = keras.layers.Dense(2, name="out")(x)
    return keras.Model(row, keras.layers.Activation("softmax", name="p")(x))


@pytest.mark.parametrize("name", ("out", "p"))
def test_what_a_model_gives_is_not_tied(name):
    with pytest.raises(ValueError, match=f"'{name}' of .* the model's output"):
        tie_dropout(_two_layers(), ["hidden", name])


def test_a_bad_seed_is_refused():
    with pytest.raises(ValueError, match="`seed` must be an integer from 0"):
        tie_dropout(_two_layers(), ["hidden"], seed=-1)
