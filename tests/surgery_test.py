import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import graph, models
from tfmemloc.configs import ModelConfig
from tfmemloc.layers.tied_dropout import ExampleTiedDropout


@pytest.fixture(scope="module")
def tied_model():
    return models.build(ModelConfig(width=0.25), (8, 8, 1), 10)


def _feed(count=4):
    rng = np.random.default_rng(0)
    return {
        "image": rng.uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32),
        "example_id": np.arange(count),
    }


def test_with_inference_shares_weights_and_changes_nothing(tied_model):
    before = tied_model.predict(_feed(), verbose=0)
    tied = graph.with_inference(tied_model, "tied")
    expected = graph.with_inference(tied_model, "expected")
    assert [w.path for w in tied.weights] == [
        w.path for w in tied_model.weights
    ]
    assert all(
        a is b for a, b in zip(tied.weights, tied_model.weights, strict=True)
    )
    outputs = [m.predict(_feed(), verbose=0) for m in (tied, expected)]
    assert not np.allclose(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], before)
    np.testing.assert_array_equal(
        tied_model.predict(_feed(), verbose=0), before
    )
    back = graph.with_inference(tied, "drop")
    np.testing.assert_array_equal(back.predict(_feed(), verbose=0), before)


def test_with_inference_reaches_nested_models():
    inner_x = keras.Input((6,), name="x")
    inner_ids = keras.Input((), dtype="int64", name="ids")
    tied = ExampleTiedDropout(0.5, 0.5, name="tied")(inner_x, inner_ids)
    inner = keras.Model([inner_x, inner_ids], tied, name="inner")
    x = keras.Input((6,), name="image")
    ids = keras.Input((), dtype="int64", name="example_id")
    model = keras.Model({"image": x, "example_id": ids}, inner([x, ids]))
    changed = graph.with_inference(model, "tied")
    layer = graph.tied_layers(changed)[0]
    assert layer.inference == "tied"
    assert graph.tied_layers(model)[0].inference == "drop"
    feed = {"image": np.ones((3, 6), "float32"), "example_id": np.arange(3)}
    np.testing.assert_array_equal(
        changed.predict(feed, verbose=0), layer.example_units(np.arange(3))
    )


def test_with_inference_refuses_what_it_cannot_edit():
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="no ExampleTiedDropout layer"):
        graph.with_inference(plain, "drop")

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.tied = ExampleTiedDropout(0.5, 0.5)

        def call(self, x, ids, training=None):
            return self.tied(x, ids, training=training)

    model = Subclassed()
    model(tf.ones([2, 4]), tf.range(2))
    with pytest.raises(ValueError, match="In a subclassed model make"):
        graph.with_inference(model, "tied")


def _branched():
    """Two branches, each with a normalization, and a shared dense layer."""
    x = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    left = keras.layers.Dense(3, name="left")(shared(x))
    right = keras.layers.Dense(3, name="right")(shared(shared(x)))
    left = keras.layers.BatchNormalization(name="left_norm")(left)
    right = keras.layers.LayerNormalization(name="right_norm")(right)
    out = keras.layers.Dense(2, name="out")(left + right)
    return keras.Model(x, out)


def test_groups_of_any_model_follow_the_graph():
    groups = graph.layer_groups(_branched())
    names = {
        name: [layer.name for layer in layers]
        for name, layers in groups.items()
    }
    assert names == {
        "shared": ["shared"],
        "left": ["left", "left_norm"],
        "right": ["right", "right_norm"],
        "out": ["out"],
    }


def test_groups_of_keras_applications():
    model = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), weights=None, classes=10
    )
    groups = graph.layer_groups(model)
    variables = sum(graph.group_variables(groups).values(), [])
    assert {id(v) for v in variables} == {id(v) for v in model.weights}
    assert len(variables) == len(model.weights)


def test_groups_by_the_user_are_taken():
    groups = graph.layer_groups(
        _branched(),
        {
            "front": ["shared", "left", "right"],
            "back": ["left_norm", "right_norm", "out"],
        },
    )
    assert [layer.name for layer in groups["back"]] == [
        "left_norm",
        "right_norm",
        "out",
    ]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({"a": ["nope"]}, "names the layer 'nope', which"),
        ({"a": ["out"], "b": ["out"]}, "is in two groups, 'a' and 'b'"),
        ({"a": ["left", "out", "shared", "right"], "b": []}, "no weights"),
        ({"a": ["out"]}, "No group names the layers"),
    ],
)
def test_bad_groups_are_refused(groups, words):
    with pytest.raises(ValueError) as error:
        graph.layer_groups(_branched(), groups)
    assert words in str(error.value)
    assert "left_norm" in str(error.value)  # The choices are listed.


def test_a_model_without_weights_has_no_groups():
    model = keras.Sequential([keras.Input((2,)), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="no layer with weights"):
        graph.layer_groups(model)


def test_swapped_weights_come_back_bit_for_bit(tied_model):
    variables = tied_model.weights[:6]
    before = [v.numpy() for v in variables]
    logits = tied_model.predict(_feed(), verbose=0)
    zeros = [np.zeros_like(value) for value in before]
    with graph.swapped_weights(variables, zeros):
        assert all((v.numpy() == 0).all() for v in variables)
        # The function that predict traced before sees the lent weights.
        swapped = tied_model.predict(_feed(), verbose=0)
    assert not np.allclose(swapped, logits)
    with (
        pytest.raises(RuntimeError, match="body"),
        graph.swapped_weights(variables, zeros),
    ):
        raise RuntimeError("body")
    for variable, value in zip(variables, before, strict=True):
        assert variable.numpy().tobytes() == value.tobytes()
    with (
        pytest.raises(ValueError, match="Expected values of shapes"),
        graph.swapped_weights(variables, zeros[1:]),
    ):
        pass
