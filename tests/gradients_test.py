import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracles import assert_close, randomize
from tfmemloc import gradients, graph, losses, models
from tfmemloc.configs import ModelConfig
from tfmemloc.gradients import calls, closed_forms, terms
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.terms import Factored
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers.temperature import Temperature

layers = keras.layers


@pytest.fixture(autouse=True)
def short_vit(monkeypatch):
    """The blocks of a ViT are alike: two show what six do."""
    monkeypatch.setattr(models.vit, "_DEPTH", 2)


def _flat_model(shape, *stack, classes=5):
    x = inputs = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    if len(x.shape) > 2:
        x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(classes)(x))


def _attention_model():
    x = inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def _embedding_model():
    inputs = keras.Input((7,))
    x = layers.Embedding(4, 3)(inputs)  # Rows repeat within an example.
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def _shared_model():
    inputs = keras.Input((8, 8, 4))
    conv, dense = layers.Conv2D(4, 3, padding="same"), layers.Dense(4)
    norm = layers.BatchNormalization()
    x = norm(conv(dense(inputs)))
    x = norm(conv(dense(x))) + inputs
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


def _nested_model():
    inner = _flat_model((8, 8, 2), layers.Conv2D(3, 3), classes=4)
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, layers.Dense(5)(inner(inputs)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(3, 3, activation="relu")
        self.flatten = layers.Flatten()
        self.head = layers.Dense(5)

    def call(self, inputs):
        if isinstance(inputs, dict):
            inputs = inputs["image"]
        return self.head(self.flatten(self.convolution(inputs)))


def _subclassed_model():
    model = Subclassed()
    model(tf.zeros([1, 8, 8, 2]))
    return model


def _text_model():
    """Several closed forms after each other, on sequences."""
    x = inputs = keras.Input((10, 6))
    x = layers.Conv1D(8, 3, padding="causal", activation="relu")(x)
    x = layers.EinsumDense("btd,dhk->bthk", (None, 2, 3), bias_axes="hk")(x)
    x = layers.Reshape((10, 6))(x)
    x = layers.LayerNormalization()(x)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(x)))


MODELS = {
    "dense": lambda: _flat_model((6,), layers.Dense(7, activation="relu")),
    "dense_rank_4": lambda: _flat_model((3, 4, 6), layers.Dense(7)),
    "dense_no_bias": lambda: _flat_model((6,), layers.Dense(7, use_bias=False)),
    "conv1d": lambda: _flat_model(
        (9, 4), layers.Conv1D(6, 3, strides=2, activation="tanh")
    ),
    "conv1d_causal": lambda: _flat_model(
        (9, 4), layers.Conv1D(6, 3, dilation_rate=2, padding="causal")
    ),
    "conv1d_groups": lambda: _flat_model(
        (9, 4), layers.Conv1D(6, 3, groups=2, padding="same")
    ),
    "conv2d": lambda: _flat_model((8, 8, 3), layers.Conv2D(4, 3)),
    "conv2d_stride_same": lambda: _flat_model(
        (9, 7, 3), layers.Conv2D(4, (5, 3), strides=2, padding="same")
    ),
    "conv2d_dilated": lambda: _flat_model(
        (9, 9, 3), layers.Conv2D(4, 3, dilation_rate=2, activation="relu")
    ),
    "conv2d_same_dilated": lambda: _flat_model(
        (7, 6, 3), layers.Conv2D(4, (3, 2), dilation_rate=2, padding="same")
    ),
    "conv2d_groups": lambda: _flat_model(
        (8, 8, 6), layers.Conv2D(9, 3, groups=3, padding="same")
    ),
    "conv2d_1x1": lambda: _flat_model(
        (8, 8, 6), layers.Conv2D(9, 1, strides=2)
    ),
    # Many channels at few places: here the Gram form is the cheaper one.
    "conv2d_gram": lambda: _flat_model(
        (4, 4, 48), layers.Conv2D(64, 3, padding="same")
    ),
    "depthwise": lambda: _flat_model(
        (8, 8, 3),
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
    ),
    "depthwise1d": lambda: _flat_model(
        (9, 4), layers.DepthwiseConv1D(3, strides=2)
    ),
    "batch_norm": lambda: _flat_model((8, 8, 3), layers.BatchNormalization()),
    "batch_norm_axis_1": lambda: _flat_model(
        (3, 8), layers.BatchNormalization(axis=1, scale=False)
    ),
    "layer_norm": lambda: _flat_model((5, 6), layers.LayerNormalization()),
    "group_norm": lambda: _flat_model(
        (4, 4, 6), layers.GroupNormalization(groups=3)
    ),
    "einsum": lambda: _flat_model(
        (5, 6),
        layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de"),
    ),
    "einsum_shared_axis": lambda: _flat_model(
        (5, 6), layers.EinsumDense("abc,bcd->abd", (5, 4))
    ),
    "einsum_ellipsis": lambda: _flat_model(
        (5, 6), layers.EinsumDense("...x,xy->...y", 4, bias_axes="y")
    ),
    "temperature": lambda: _flat_model((5, 6), Temperature(0.4)),
    "attention": _attention_model,
    "embedding": _embedding_model,
    "shared": _shared_model,
    "nested": _nested_model,
    "subclassed": _subclassed_model,
    "text": _text_model,
}


# No closed form: done by vectorized_map of that layer alone.
FALLBACKS = {
    "conv2d_transpose": lambda: _flat_model(
        (4, 4, 3), layers.Conv2DTranspose(2, 3)
    ),
    "prelu": lambda: _flat_model((4, 4, 3), layers.PReLU()),
    "rms_norm": lambda: (
        _flat_model((5, 6), layers.RMSNormalization())
        if hasattr(layers, "RMSNormalization")
        else _flat_model((5, 6), layers.PReLU())
    ),
}


def _batch(model, count=5, seed=0):
    rng = np.random.default_rng(seed)
    shape = getattr(model, "input_shape", None) or (None, 8, 8, 2)
    if isinstance(shape, dict):
        shape = shape["image"]
    image = rng.normal(size=(count, *shape[1:])).astype(np.float32)
    if any(isinstance(layer, layers.Embedding) for layer in model.layers):
        image = rng.integers(0, 4, (count, *shape[1:])).astype(np.float32)
    inputs = {"image": image, "example_id": np.arange(count)}
    return inputs, rng.integers(0, 5, count)


def _images(count, shape):
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (count, *shape)).astype(np.float32)
    inputs = {"image": image, "example_id": np.arange(count)}
    return inputs, np.arange(count) % 5


def _one_by_one(model, batch, weight_decay=0.0):
    """The slow twin: a tape for each example.

    The example goes in twice and its first copy's loss is taken: on one image
    alone oneDNN's convolutions crash for some shapes (TensorFlow 2.21).
    """
    variables = model.trainable_variables

    @tf.function(autograph=False)
    def tape_of_one(inputs, label):
        with tf.GradientTape() as tape:
            logits = model(arranged(model, inputs), training=False)
            loss = losses.cross_entropy(label, logits)[0]
        return [
            tf.convert_to_tensor(g)
            for g in tape.gradient(
                loss,
                [v.value for v in variables],
                unconnected_gradients="zero",
            )
        ]

    def pair(i):
        return tf.nest.map_structure(
            lambda part: tf.constant(part[[i, i]]), batch
        )

    result = [tape_of_one(*pair(i)) for i in range(len(batch[1]))]
    stacked = [np.stack(parts) for parts in zip(*result, strict=True)]
    return [
        g + weight_decay * v.numpy()
        for g, v in zip(stacked, variables, strict=True)
    ]


def _assert_exact(model, batch=None, rtol=1e-5, **options):
    """All quantities of the engine against tapes and each other."""
    batch = batch or _batch(model)
    expected = _one_by_one(model, batch, options.get("weight_decay", 0.0))
    engine = GradientEngine(model, **options)
    found = engine.gradients(*batch)
    # A gradient that is zero but for rounding (of the bias of attention keys)
    # is measured by the others.
    least = 0.1 * max(np.abs(e).max() for e in expected)
    for g, e in zip(found, expected, strict=True):
        assert_close(g, e, rtol, least)
    norms = np.stack([(e**2).reshape(len(e), -1).sum(1) for e in expected], 1)
    assert_close(engine.norms_squared(*batch), norms, rtol)
    rng = np.random.default_rng(3)
    direction = [
        rng.normal(size=v.shape).astype(np.float32) for v in engine.variables
    ]
    dots = np.stack(
        [
            (e * d).reshape(len(e), -1).sum(1)
            for e, d in zip(expected, direction, strict=True)
        ],
        1,
    )
    assert_close(engine.dots(*batch, direction), dots, rtol)
    norms_too, sums, _ = engine.account(*batch)
    assert_close(norms_too, norms, rtol)
    for total, e in zip(sums, expected, strict=True):
        assert_close(total, e.sum(axis=0), rtol, least)
    return engine


@pytest.mark.parametrize("name", MODELS)
def test_closed_forms_are_exact(name):
    model = MODELS[name]()
    randomize(model)
    assert _assert_exact(model).fallbacks == ()


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"subclassed"}))
def test_the_left_factor_at_some_positions(name, rng):
    model = MODELS[name]()
    x = rng.uniform(0, 4, (2, *model.input_shape[1:])).astype(np.float32)
    weighted = calls.weighted_layers(model)
    with calls.recorded_calls(weighted) as recorded:
        model(x)
    terms = [
        term
        for call in recorded
        for _, term in calls.terms_of_call(call, call.output)
        if isinstance(term, Factored)
    ]
    assert terms
    for term in terms:
        count = term.left.shape[1]
        places = np.sort(rng.permutation(count)[: max(1, count // 2)])
        np.testing.assert_array_equal(
            term.left_at(places), term.left.numpy()[:, places]
        )


@pytest.mark.parametrize("name", FALLBACKS)
def test_other_layers_fall_back_alone(name):
    model = FALLBACKS[name]()
    randomize(model)
    engine = _assert_exact(model)
    assert len(engine.fallbacks) == 1


@pytest.mark.parametrize("name", ["dense_rank_4", "conv2d_gram", "embedding"])
def test_vectorized_map_is_exact(name):
    model = MODELS[name]()
    randomize(model)
    _assert_exact(model, engine="vectorized_map")


@pytest.mark.parametrize("engine", gradients.ENGINES)
@pytest.mark.parametrize("name", ["conv2d_groups", "embedding", "shared"])
def test_weight_decay_is_part_of_each_gradient(name, engine):
    model = MODELS[name]()
    randomize(model)
    _assert_exact(model, engine=engine, weight_decay=0.3)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig("lenet"), (8, 8, 1)),
        (ModelConfig("resnet9", width=0.125), (16, 16, 3)),
        (ModelConfig("resnet18", width=0.125), (16, 16, 3)),
        (ModelConfig("vit", width=0.0625, dropout="none"), (8, 8, 1)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_networks_are_exact(config, shape):
    model = models.build(config, shape, 5)
    model = (
        graph.with_inference(model, "tied")
        if (graph.tied_layers(model))
        else model
    )
    # Attention, for one, is not computed twice.
    assert _assert_exact(model, _images(4, shape)).fallbacks == ()


def test_a_keras_application_is_exact():
    model = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3),
        weights=None,
        classes=5,
        include_preprocessing=False,
        classifier_activation=None,
    )
    randomize(model)
    batch = _images(3, (32, 32, 3))
    # Eighty layers: rounding adds up; measured 3e-6.
    assert _assert_exact(model, batch, rtol=3e-5).fallbacks == ()


_CONVOLUTION = st.fixed_dictionaries(
    {
        "filters": st.sampled_from([4, 8, 12]),
        "kernel_size": st.integers(1, 3),
        "padding": st.sampled_from(["same", "valid"]),
        "groups": st.sampled_from([1, 2, 4]),
        "use_bias": st.booleans(),
        "activation": st.sampled_from([None, "relu", "tanh"]),
    }
)


_LAYER = st.one_of(
    _CONVOLUTION.map(lambda options: ("Conv2D", options)),
    st.just(("DepthwiseConv2D", {"kernel_size": 3, "padding": "same"})),
    st.just(("BatchNormalization", {})),
    st.sampled_from([4, 8]).map(lambda units: ("Dense", {"units": units})),
)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(specs=st.lists(_LAYER, min_size=1, max_size=4))
def test_random_architectures_are_exact(specs):
    stack = [getattr(layers, name)(**options) for name, options in specs]
    # Nine pixels are enough for four valid 3x3 convolutions.
    model = _flat_model((9, 9, 4), *stack)
    randomize(model)
    _assert_exact(model, _batch(model, 3))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_layers_are_left_as_they_were(jit_compile):
    model = MODELS["shared"]()
    before = {layer: dict(vars(layer)) for layer in model.layers}
    weights = model.get_weights()
    engine = GradientEngine(model)
    batch = _batch(model)
    if jit_compile:
        function = tf.function(engine._norms_squared_of, jit_compile=True)
        norms = function(*engine.as_batch(*batch))
        assert_close(norms, engine.norms_squared(*batch))
    else:
        engine.norms_squared(*batch)
    for layer, attributes in before.items():
        assert set(vars(layer)) == set(attributes)
        assert vars(layer).get("activation") is attributes.get("activation")
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_accumulates_in_float32(dtype):
    config = ModelConfig("resnet9", width=0.125, dropout="none")
    half = models.build(config, (16, 16, 3), 5, dtype=dtype)
    full = models.build(config, (16, 16, 3), 5)
    half.set_weights(full.get_weights())
    batch = _images(8, (16, 16, 3))
    found = GradientEngine(half).norms_squared(*batch)
    assert found.dtype == tf.float32
    expected = GradientEngine(full).norms_squared(*batch)
    # bfloat16 has 8 bits: 0.4 % at each of some twenty layers.
    np.testing.assert_allclose(
        np.sqrt(np.sum(found, axis=1)),
        np.sqrt(np.sum(expected, axis=1)),
        rtol=0.1,
    )


def test_a_model_of_a_mirrored_strategy(two_devices):
    config = ModelConfig("resnet9", width=0.125, dropout="none")
    with two_devices.scope():
        mirrored = models.build(config, (8, 8, 1), 5, synchronized=True)
    plain = models.build(config, (8, 8, 1), 5)
    batch = _images(5, (8, 8, 1))
    assert_close(
        GradientEngine(mirrored).norms_squared(*batch),
        GradientEngine(plain).norms_squared(*batch),
    )


def test_weights_used_outside_of_their_layer_are_refused():
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4, use_bias=False)

        def call(self, inputs):
            x = inputs["image"] if isinstance(inputs, dict) else inputs
            return tf.matmul(x, tf.convert_to_tensor(self.dense.kernel))

    model = Tied()
    model.dense.build((None, 4))
    model(tf.zeros([1, 4]))
    batch = (
        {"image": np.ones((2, 4), np.float32), "example_id": np.arange(2)},
        np.arange(2),
    )
    with pytest.raises(ValueError, match='engine="vectorized_map"'):
        GradientEngine(model).norms_squared(*batch)
    norms = GradientEngine(model, engine="vectorized_map").norms_squared(*batch)
    assert norms.shape == (2, 1)


@pytest.mark.parametrize("few_positions", (False, True))
@pytest.mark.parametrize(
    ("shape", "options"),
    (
        ((6, 5, 3), {"kernel_size": 3, "padding": "same"}),
        ((7, 8, 2), {"kernel_size": (3, 2), "strides": 2}),
        ((9, 8, 2), {"kernel_size": (2, 4), "strides": 3, "padding": "same"}),
        ((9, 9, 2), {"kernel_size": 3, "dilation_rate": 2, "padding": "same"}),
        ((8, 9, 2), {"kernel_size": 2, "dilation_rate": (2, 3)}),
    ),
)
def test_both_forms_of_a_convolution(
    few_positions, shape, options, rng, monkeypatch
):
    """The norm by windows, and by Gram matrices, is that of the gradient."""
    layer = layers.Conv2D(4, **options)
    x = tf.constant(rng.normal(size=(3, *shape)), tf.float32)
    g = tf.constant(rng.normal(size=layer(x).shape), tf.float32)
    (_, term), _ = closed_forms.HANDLERS[layers.Conv2D](layer, x, g)
    assert isinstance(term, terms.Windowed)
    cost = -1e9 if few_positions else 1e9
    monkeypatch.setattr(terms, "_ENTRY", cost)
    is_gram = few_positions and options.get("strides", 1) == 1
    assert term._few_positions() == is_gram
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.unstack(tf.reduce_sum(layer(x) * g, [1, 2, 3]))
    expected = np.stack(
        [tape.gradient(one, layer.kernel.value) for one in loss]
    )
    direction = rng.normal(size=layer.kernel.shape).astype(np.float32)
    np.testing.assert_allclose(term.full(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        term.norms_squared(), (expected**2).sum((1, 2, 3, 4)), rtol=1e-4
    )
    np.testing.assert_allclose(
        term.dot(tf.constant(direction)),
        (expected * direction).sum((1, 2, 3, 4)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_few_positions_are_told_by_what_each_form_costs(rng):
    """ResNet-9's last convolutions have few, its first ones many."""

    def few(size, channels):
        x = tf.zeros([1, size, size, channels])
        layer = layers.Conv2D(channels, 3, padding="same")
        found = closed_forms.HANDLERS[layers.Conv2D](layer, x, layer(x))
        return found[0][1]._few_positions()

    assert few(8, 128) and few(4, 64)
    assert not few(32, 64) and not few(16, 64) and not few(8, 8)
