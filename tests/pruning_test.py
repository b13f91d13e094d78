"""Pruned networks say the same, are smaller, and hold nothing of the rest."""

import keras
import numpy as np
import pytest

from tests.tying_test import MODELS, _feed
from tfmemloc import graph
from tfmemloc.configs import ModelConfig
from tfmemloc.graph.tying import tie_dropout
from tfmemloc.layers.tied_dropout import ExampleTiedDropout
from tfmemloc.models import build
from tfmemloc.serving.folding import fold_batch_norm
from tfmemloc.serving.pruning import prune_memorization, pruning_plan


def _shake(model, rng):
    """Weights that are all different from 0, and statistics from 0 and 1."""
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        noise = rng.normal(size=weight.shape, scale=0.1)
        offset = 1.0 if "variance" in weight.path else 0.0
        weight.assign(np.abs(weight + noise) if offset else weight + noise)


def _check_same(model, rng):
    """The pruned model gives the same outputs; returns it."""
    small = prune_memorization(model)
    feed = _feed(model, rng)

    def own(one):
        return keras.tree.map_structure(
            lambda t: feed[t.name], graph.inputs_of(one)
        )

    expected = model(own(model), training=False)
    found = small(own(small), training=False)

    def close(a, b):
        scale = max(1.0, float(np.abs(a).max()))
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-5)

    keras.tree.map_structure(close, expected, found)
    assert not graph.tied_layers(small)
    return small


@pytest.mark.parametrize("name", MODELS)
def test_pruned_models_say_the_same(name, rng):
    make, after = MODELS[name]
    tied = tie_dropout(make(), after, p_gen=0.25, p_mem=0.5)
    _shake(tied, rng)
    small = _check_same(tied, rng)
    assert small.count_params() < tied.count_params()
    names = [t.name for t in keras.tree.flatten(small.input)]
    assert "example_id" not in names


@pytest.mark.parametrize(
    ("name", "rescale"),
    [
        *(("lenet", "none"), ("lenet", "mass")),
        *(("resnet9", "none"), ("resnet9", "mass")),
        *(("resnet18", "none"), ("resnet50", "none")),
        # Rescaling does not ask how deep a network is.
        pytest.param("resnet18", "mass", marks=pytest.mark.slow),
        pytest.param("resnet50", "mass", marks=pytest.mark.slow),
    ],
)
def test_our_networks_become_plain_keras_ones(name, rescale, rng, tmp_path):
    config = ModelConfig(
        name=name, width=1 if name == "lenet" else 0.25, p_gen=0.25,
        rescale=rescale,
    )  # fmt: skip
    model = build(config, (16, 16, 3), 10)
    _shake(model, rng)
    small = _check_same(model, rng)
    assert all(
        type(layer).__module__.startswith("keras")
        for layer in graph.flat_layers(small)
    )
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras", safe_mode=True)
    image = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(again(image), small(image), atol=1e-6)


def test_the_vit_keeps_what_pruning_cannot_see_through(rng):
    model = build(ModelConfig("vit", width=0.125, p_gen=0.5), (8, 8, 1), 10)
    _shake(model, rng)
    small = _check_same(model, rng)
    assert small.count_params() < model.count_params()
    whole = [row["layer"] for row in pruning_plan(model) if row["whole"]]
    assert "block3.attention_norm" in whole


def test_resnet9_keeps_its_generalization_units_alone():
    model = build(ModelConfig(p_gen=0.25), (32, 32, 3), 10)
    rows = {row["layer"]: row for row in pruning_plan(model)}
    found = {
        name: (row["units_after"], row["inputs_after"])
        for name, row in rows.items()
    }
    assert found == {
        "conv1.conv": (16, 3),
        "conv2.conv": (32, 16),
        # The inside of a residual block has no dropout of its own.
        "res1a.conv": (128, 32),
        "res1b.conv": (32, 128),
        "conv3.conv": (64, 32),
        "res2a.conv": (256, 64),
        "res2b.conv": (64, 256),
        "conv4.conv": (32, 64),
        "head.dense": (10, 32),
    }
    assert not any(row["whole"] for row in rows.values())


def _around(layers, shape=(8, 8, 6), classes=4):
    """Image, convolution, tied layer, some layers, logits."""
    image = keras.Input(shape, name="image")
    ids = keras.Input((), dtype="int64", name="example_id")
    kind = keras.layers.Conv2D if len(shape) == 3 else keras.layers.Conv1D
    x = kind(8, 3, padding="same", activation="relu", name="before")(image)
    x = ExampleTiedDropout(0.5, 0.5, name="tied")(x, ids)
    for layer in layers:
        x = layer(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(classes, name="out")(x)
    return keras.Model({"image": image, "example_id": ids}, x)


L = keras.layers
_RELU = L.ReLU(name="shared_relu")
AROUND = {
    "norm": [L.BatchNormalization()],
    "norm, relu": [L.BatchNormalization(), L.ReLU()],
    "prelu": [L.PReLU(shared_axes=[1, 2])],
    "prelu by pixel": [L.PReLU()],
    "sigmoid": [L.Activation("sigmoid")],
    "softmax": [L.Activation("softmax")],
    "gelu": [L.Activation("gelu"), L.Conv2D(6, 3)],
    "layer norm": [L.LayerNormalization(), L.Conv2D(6, 3)],
    "group norm": [L.GroupNormalization(4)],
    "depthwise": [L.DepthwiseConv2D(3)],
    "depthwise twice": [L.DepthwiseConv2D(3, depth_multiplier=2)],
    "depthwise, no bias": [
        L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
        L.Conv2D(5, 1),
    ],
    "separable": [L.SeparableConv2D(6, 3, depth_multiplier=2)],
    "grouped": [L.Conv2D(12, 3, groups=4)],
    "grouped into norm": [L.Conv2D(12, 3, groups=2), L.BatchNormalization()],
    "transposed": [L.Conv2DTranspose(6, 3, strides=2)],
    "pooling": [L.MaxPooling2D(2), L.AveragePooling2D(2)],
    "same pooling": [L.MaxPooling2D(3, 2, padding="same")],
    "global": [L.GlobalAveragePooling2D(), L.Dense(5, "relu")],
    "global max": [L.GlobalMaxPooling2D(keepdims=True), L.Conv2D(3, 1)],
    "flatten": [L.Flatten(), L.Dense(7, "tanh")],
    "reshape": [L.Reshape((64, 8)), L.Dense(5)],
    "reshape channels": [L.Reshape((32, 16)), L.Dense(5)],
    "rescaling": [L.Rescaling(0.5), L.Conv2D(3, 1)],
    "offset": [L.Rescaling(0.5, 1.0), L.Conv2D(3, 1)],
    "padding": [L.ZeroPadding2D(1), L.Cropping2D(2), L.UpSampling2D(2)],
    "dropout": [L.Dropout(0.5), L.SpatialDropout2D(0.5), L.GaussianNoise(1.0)],
    "permute": [L.Permute((2, 1, 3)), L.Conv2D(3, 1)],
    "dense": [L.Dense(6, "softmax"), L.Dense(3)],
    "spectral": [L.UnitNormalization()],
    "nested": [
        keras.Sequential(
            [keras.Input((8, 8, 8)), L.Conv2D(5, 3), L.BatchNormalization()]
        )
    ],
    "ops": [
        lambda x: x * 2.0,
        lambda x: keras.ops.relu(x) + 1.0,
        lambda x: x / 3.0,
        lambda x: x - keras.ops.mean(x, axis=1, keepdims=True),
    ],
    "add": [lambda x: L.Add()([x, L.Conv2D(8, 1)(x)]), L.Conv2D(3, 1)],
    "operator": [lambda x: x + L.Conv2D(8, 1)(x), L.Conv2D(3, 1)],
    "multiply": [lambda x: L.Multiply()([x, L.Conv2D(8, 1)(x)])],
    "excite": [
        lambda x: (
            x
            * L.Dense(8, "sigmoid")(L.GlobalAveragePooling2D(keepdims=True)(x))
        ),
        L.Conv2D(3, 1),
    ],
    "maximum": [lambda x: L.Maximum()([x, L.Conv2D(8, 1)(x)])],
    "concatenate": [
        lambda x: L.Concatenate()([L.Conv2D(3, 1)(x), x, x]),
        L.Conv2D(4, 1),
    ],
    "concatenate into norm": [
        lambda x: L.Concatenate()([x, L.Conv2D(3, 1)(x)]),
        L.BatchNormalization(),
    ],
    "concatenate rows": [lambda x: L.Concatenate(axis=1)([x, x])],
    "one activation, two uses": [_RELU, L.Conv2D(5, 3), _RELU],
}


@pytest.mark.parametrize("name", AROUND)
def test_what_may_follow_a_tied_layer(name, rng):
    model = _around(AROUND[name])
    _shake(model, rng)
    small = _check_same(model, rng)
    assert small.get_layer("before").filters == 4


def test_attention_is_projected_from_and_to_fewer_channels(rng):
    tokens = keras.Input((6, 5), name="image")
    ids = keras.Input((), dtype="int64", name="example_id")
    x = keras.layers.Dense(8, "relu")(tokens)
    x = ExampleTiedDropout(0.25, 0.5)(x, ids)
    y = keras.layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    y = ExampleTiedDropout(0.5, 0.5, seed=1)(y, ids)
    y = keras.layers.Dense(4)(y)
    model = keras.Model({"image": tokens, "example_id": ids}, y)
    _shake(model, rng)
    small = _check_same(model, rng)
    (row,) = [r for r in pruning_plan(model) if r["layer"] == "mha"]
    assert (row["inputs_after"], row["units_after"]) == (2, 4)
    assert small.get_layer("mha").output.shape[-1] == 4


def test_embeddings_lose_columns(rng):
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    ids = keras.Input((), dtype="int64", name="example_id")
    x = keras.layers.Embedding(9, 8, name="table")(tokens)
    x = ExampleTiedDropout(0.25, 0.5)(x, ids)
    y = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling1D()(x))
    model = keras.Model({"tokens": tokens, "example_id": ids}, y)
    small = _check_same(model, rng)
    assert small.get_layer("table").output_dim == 2


def test_a_layer_used_twice_stays_whole_and_is_reported(rng):
    shared = keras.layers.Conv2D(8, 1, name="shared")
    model = _around([shared, shared])
    _shake(model, rng)
    _check_same(model, rng)
    rows = [row for row in pruning_plan(model) if row["whole"]]
    assert {row["layer"] for row in rows} == {"shared"}


def test_the_model_given_is_unchanged(rng):
    model = build(ModelConfig(width=0.25), (8, 8, 1), 10)
    before = [w.copy() for w in model.get_weights()]
    small = prune_memorization(model)
    for weight in small.weights:
        weight.assign(weight * 0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_models_that_cannot_be_pruned():
    plain = build(ModelConfig(dropout="none"), (8, 8, 1), 10)
    with pytest.raises(ValueError, match="no memorization units to prune"):
        prune_memorization(plain)
    tied = graph.with_inference(build(ModelConfig(), (8, 8, 1), 10), "tied")
    with pytest.raises(ValueError, match='Expected "drop"'):
        prune_memorization(tied)


def _norms(model):
    return [
        layer
        for layer in graph.flat_layers(model)
        if isinstance(layer, L.BatchNormalization)
    ]


FOLDED = {
    "resnet18": lambda: build(
        ModelConfig("resnet18", width=0.125, dropout="none"), (8, 8, 1), 4
    ),
    "mobilenet": MODELS["MobileNetV3Small"][0],
    "dense": lambda: _around([L.Flatten(), L.Dense(5), L.BatchNormalization()]),
    "transposed": lambda: _around(
        [L.Conv2DTranspose(6, 3), L.BatchNormalization(scale=False)]
    ),
    "separable": lambda: _around(
        [
            L.SeparableConv2D(6, 3, use_bias=False),
            L.BatchNormalization(center=False),
        ]
    ),
    "depthwise": lambda: _around(
        [L.DepthwiseConv2D(3, depth_multiplier=2), L.BatchNormalization()]
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folded_models_say_the_same(name, rng):
    model = FOLDED[name]()
    _shake(model, rng)
    folded = fold_batch_norm(model)
    assert _norms(model) and not _norms(folded)
    feed = _feed(model, rng)
    feed = keras.tree.map_structure(
        lambda t: feed[t.name], graph.inputs_of(model)
    )
    expected = model(feed, training=False)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(
        folded(feed, training=False) / scale, expected / scale, atol=1e-5
    )


def test_what_cannot_be_folded_stays(rng):
    shared = L.Conv2D(8, 1, name="shared")
    model = _around(
        [
            L.BatchNormalization(name="behind a tied layer"),
            L.Conv2D(8, 3, activation="relu"),
            L.BatchNormalization(name="behind an activation"),
            shared,
            shared,
            L.BatchNormalization(name="behind a shared layer"),
        ]
    )
    assert len(_norms(fold_batch_norm(model))) == 3


def test_an_output_before_batch_norm_is_not_folded():
    given = keras.Input((5,))
    dense = keras.layers.Dense(4)(given)
    normalized = keras.layers.BatchNormalization()(dense)
    model = keras.Model(given, [dense, normalized])
    model.layers[-1].moving_mean.assign(np.full(4, 2.0))
    x = np.ones((3, 5), np.float32)
    for found, wanted in zip(fold_batch_norm(model)(x), model(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
