"""Every layer and network of ours, crossed with what Keras users do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import data, models, training
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.temperature import Temperature
from tfmemloc.layers.tied_dropout import ExampleTiedDropout
from tfmemloc.models import vit

SHAPE = (8, 8, 1)


@pytest.fixture(autouse=True)
def short_vit(monkeypatch):
    """The blocks of a ViT are alike: two show what six do."""
    monkeypatch.setattr(vit, "_DEPTH", 2)


def _layer_model(layer, shape=SHAPE):
    """A small network around one layer."""
    image = keras.Input(SHAPE, name="image")
    ids = keras.Input((), dtype="int64", name="example_id")
    x = keras.layers.Reshape(shape)(image) if shape != SHAPE else image
    x = keras.layers.Dense(12, name="before")(x)
    x = layer(x, ids) if isinstance(layer, ExampleTiedDropout) else layer(x)
    x = keras.layers.Flatten()(x)
    logits = keras.layers.Dense(10, name="logits")(x)
    return keras.Model({"image": image, "example_id": ids}, logits)


def _network(name, dropout):
    width = 1.0 if name == "lenet" else 0.125
    return models.build(
        ModelConfig(name, width=width, dropout=dropout, p_gen=0.5), SHAPE, 10
    )


SUBJECTS = {
    "ExampleTiedDropout": lambda: _layer_model(ExampleTiedDropout(0.5, 0.5)),
    "SparseDropout": lambda: _layer_model(SparseDropout(0.5)),
    "ShiftedPatches": lambda: _layer_model(vit.ShiftedPatches(2)),
    "TokenEmbedding": lambda: _layer_model(vit.TokenEmbedding(), shape=(16, 4)),
    "Temperature": lambda: _layer_model(Temperature(0.5), shape=(16, 4)),
    "LocalityAttention": lambda: _layer_model(
        vit.LocalityAttention(2), shape=(16, 4)
    ),
    "FirstToken": lambda: _layer_model(vit.FirstToken(), shape=(16, 4)),
    **{
        f"{name}-{dropout}": lambda name=name, dropout=dropout: _network(
            name, dropout
        )
        for name in ("lenet", "resnet9", "resnet18", "resnet50", "vit")
        for dropout in ("none", "example_tied")
    },
}
# The tied ones of these have all of their layers.
_AGAIN = ("resnet18-none", "resnet50-none")
SAVED = [
    pytest.param(name, marks=pytest.mark.slow if name in _AGAIN else ())
    for name in SUBJECTS
]
# The others differ from these only in size.
LIGHT = [name for name in SUBJECTS if "resnet18" not in name]
LIGHT = [name for name in LIGHT if "resnet50" not in name]


def _feed(count=4):
    rng = np.random.default_rng(0)
    return {
        "image": tf.constant(rng.uniform(-1, 1, (count, *SHAPE)), tf.float32),
        "example_id": tf.range(count, dtype=tf.int64),
    }


@pytest.mark.parametrize("name", SUBJECTS)
def test_config_round_trip(name):
    model = SUBJECTS[name]()
    again = keras.models.model_from_json(model.to_json())
    assert again.to_json() == model.to_json()
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(_feed()), model(_feed()))


@pytest.mark.parametrize("name", SAVED)
def test_keras_and_saved_model_round_trips(name, tmp_path):
    model = SUBJECTS[name]()
    expected = model(_feed(), training=False).numpy()
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(_feed(), training=False), expected)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    # Graph optimizations reorder sums; measured: 2e-6.
    np.testing.assert_allclose(served.serve(_feed()), expected, atol=2e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", LIGHT)
def test_functions_agree_with_eager(name, jit_compile):
    model = SUBJECTS[name]()
    function = tf.function(
        lambda feed: model(feed, training=False), jit_compile=jit_compile
    )
    np.testing.assert_allclose(
        function(_feed()), model(_feed(), training=False), atol=2e-5
    )


@pytest.mark.parametrize("name", LIGHT)
def test_fit(name):
    model = SUBJECTS[name]()
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = model.get_weights()
    history = model.fit(_feed(), np.arange(4), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert any(
        (a != b).any() for a, b in zip(before, model.get_weights(), strict=True)
    )


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["lenet", "resnet9", "resnet18", "vit"])
def test_mixed_precision_follows_float32(name, dtype):
    width = 1.0 if name == "lenet" else 0.125
    config = ModelConfig(name, width=width, p_gen=0.5)
    half = models.build(config, SHAPE, 10, dtype=dtype)
    full = models.build(config, SHAPE, 10)
    half.set_weights(full.get_weights())
    a, b = (m(_feed(), training=True).numpy() for m in (half, full))
    assert a.dtype == np.float32
    # Plain dropout in the ViT draws its own numbers in each model.
    if name != "vit":
        np.testing.assert_allclose(a, b, atol=0.15)


@pytest.mark.parametrize("name", ["lenet", "resnet9", "vit"])
def test_a_step_on_two_devices(name, digits, two_devices):
    with two_devices.scope():
        width = 1.0 if name == "lenet" else 0.125
        model = models.build(
            ModelConfig(name, width=width, p_gen=0.5),
            SHAPE,
            10,
            synchronized=True,
        )
        optimizer = training.make_optimizer(TrainConfig(), 2)
        optimizer.build(model.trainable_variables)
    dataset = two_devices.experimental_distribute_dataset(
        data.make_batches(digits.train, 8, seed=0, stop_step=2)
    )
    step = training.make_train_step(
        model,
        optimizer,
        strategy=two_devices,
        batch_spec=dataset.element_spec,
    )
    for batch in dataset:
        assert np.isfinite(float(step(batch)))
