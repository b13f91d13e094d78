import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc.layers import masks
from tfmemloc.layers.sparse_dropout import SparseDropout
from tfmemloc.layers.tied_dropout import (
    MEMORY_OFF,
    ExampleTiedDropout,
    dropped_fraction,
)

IDS = np.array([3, 0, 2**40])


def _ones(*shape):
    return tf.ones([3, *shape])


def test_training_multiplies_by_the_examples_own_mask():
    layer = ExampleTiedDropout(0.25, 0.5, seed=4)
    y = layer(_ones(5, 5, 16), tf.constant(IDS), training=True).numpy()
    on = masks.example_mask_numpy(4, IDS, 12, 0.5)
    expected = np.concatenate([np.ones((3, 4)), on], axis=1)
    np.testing.assert_array_equal(y[:, 0, 0], expected)
    # One decision per channel, broadcast over space.
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    np.testing.assert_array_equal(layer.example_units(IDS), expected)


def test_inference_behaviours():
    x = _ones(10)

    def run(**kwargs):
        layer = ExampleTiedDropout(0.2, 0.1, seed=1, **kwargs)
        return layer(x, tf.constant(IDS), training=False).numpy()

    np.testing.assert_array_equal(run(inference="drop")[0], [1] * 2 + [0] * 8)
    np.testing.assert_allclose(
        run(inference="expected")[0], [1] * 2 + [0.1] * 8
    )
    tied = ExampleTiedDropout(0.2, 0.1, seed=1, inference="tied")
    np.testing.assert_array_equal(
        tied(x, tf.constant(IDS), training=False),
        tied(x, tf.constant(IDS), training=True),
    )
    np.testing.assert_allclose(
        run(inference="drop", rescale="mass")[0],
        [1.5] * 2 + [0] * 8,
        rtol=1e-6,  # (0.2 + 0.1) / 0.2 in float32
    )
    np.testing.assert_allclose(
        run(inference="expected", rescale="mass"), run(inference="expected")
    )


@pytest.mark.parametrize("inference", ["drop", "expected"])
def test_ids_are_not_needed_at_inference(inference):
    layer = ExampleTiedDropout(0.5, 0.5, inference=inference)
    assert layer(_ones(4), training=False).shape == (3, 4)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((8,), -1), ((6, 8), -1), ((2, 3, 4, 8), -1), ((8, 5, 5), 1)],
)
def test_any_rank_and_axis(shape, axis):
    layer = ExampleTiedDropout(0.5, 0.5, seed=2, axis=axis)
    y = layer(_ones(*shape), tf.constant(IDS), training=True).numpy()
    assert y.shape == (3, *shape)
    units = np.moveaxis(y, axis, 1).reshape(3, 8, -1)
    np.testing.assert_array_equal(units[:, :, 0], layer.example_units(IDS))
    assert (units == units[:, :, :1]).all()


def test_units_that_are_off_get_no_gradient():
    layer = ExampleTiedDropout(0.5, 0.3, seed=0)
    x = _ones(8)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x, tf.constant(IDS), training=True))
    np.testing.assert_array_equal(tape.gradient(y, x), layer.example_units(IDS))


@pytest.mark.parametrize(
    "policy", ["float32", "mixed_bfloat16", "mixed_float16"]
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_are_the_same_in_every_precision(policy, jit_compile):
    layer = ExampleTiedDropout(0.25, 0.5, seed=9, dtype=policy)
    function = tf.function(
        lambda x, ids: layer(x, ids, training=True), jit_compile=jit_compile
    )
    y = function(_ones(40), tf.constant(IDS))
    assert y.dtype == layer.compute_dtype
    np.testing.assert_array_equal(
        tf.cast(y, tf.float32), layer.example_units(IDS)
    )


def test_vectorized_map_over_examples():
    layer = ExampleTiedDropout(0.25, 0.5, seed=9)
    layer.build((None, 40))

    def one(arguments):
        x, example_id = arguments
        return layer(x[None], example_id[None], training=True)[0]

    y = tf.vectorized_map(
        one, (_ones(40), tf.constant(IDS)), fallback_to_while_loop=False
    )
    np.testing.assert_array_equal(y, layer.example_units(IDS))


def _message(error) -> str:
    return " ".join(str(error.value).split())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (None, "got no example ids"),
        (np.array([1.0, 2.0, 3.0]), "Received: dtype float"),
        (np.array([1, 2]), "expected example ids of shape [3]"),
        (np.array([[1], [2], [3]]), "Received: shape (3, 1)"),
        (np.array([1, -2, 3]), "must not be negative"),
    ],
)
def test_bad_ids_are_refused(graph, ids, words):
    layer = ExampleTiedDropout(0.5, 0.5)

    def call(x):
        given = None if ids is None else tf.constant(ids)
        return layer(x, given, training=True)

    call = tf.function(call) if graph else call
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)) as error:
        call(_ones(4))
    assert words in _message(error)


def test_wrong_number_of_ids_is_refused_when_only_known_at_run_time():
    layer = ExampleTiedDropout(0.5, 0.5)
    function = tf.function(
        lambda x, ids: layer(x, ids, training=True),
        input_signature=[
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None], tf.int64),
        ],
    )
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        function(_ones(4), tf.constant([1], tf.int64))
    assert "expected one example id for each example" in _message(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"p_gen": -0.1}, "Received: p_gen=-0.1"),
        ({"p_gen": 1.2}, "`p_gen` must be above 0 and at most 1"),
        ({"p_mem": -0.1}, "Received: p_mem=-0.1"),
        ({"p_mem": float("nan")}, "Received: p_mem=nan"),
        ({"seed": -1}, "Received: seed=-1"),
        ({"seed": 0.5}, "`seed` must be an integer"),
        ({"axis": 0}, "Received: axis=0"),
        ({"inference": "off"}, "one of 'drop', 'expected', 'tied'"),
        ({"rescale": "yes"}, "one of 'none', 'mass'"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError) as error:
        ExampleTiedDropout(**arguments)
    assert words in _message(error)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (ExampleTiedDropout(1.0), (3, 8), "no memorization units left"),
        (ExampleTiedDropout(0.2), (3, 4), "no generalization units"),
        (ExampleTiedDropout(0.5, axis=2), (3, 4), "have an axis 2"),
        (ExampleTiedDropout(0.5), (3, None), "known number of units"),
        (SparseDropout(0.5), (3,), "rank 2 or more"),
    ],
)
def test_shapes_without_both_kinds_of_units_are_refused(layer, shape, words):
    with pytest.raises(ValueError) as error:
        layer.build(shape)
    assert words in _message(error)


def test_model_round_trips_keep_the_masks(tmp_path):
    image = keras.Input((40,), name="image")
    ids = keras.Input((), dtype="int64", name="example_id")
    layer = ExampleTiedDropout(0.25, 0.5, seed=2**62, inference="tied")
    model = keras.Model({"image": image, "example_id": ids}, layer(image, ids))
    feed = {"image": np.ones((3, 40), np.float32), "example_id": IDS}
    expected = layer.example_units(IDS)
    np.testing.assert_array_equal(model.predict(feed, verbose=0), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(feed, verbose=0), expected)
    model.export(tmp_path / "saved_model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    tensors = {name: tf.constant(value) for name, value in feed.items()}
    np.testing.assert_array_equal(served.serve(tensors), expected)


def test_nothing_is_stored_per_example():
    layer = ExampleTiedDropout(0.25, 0.5)
    layer(_ones(40), tf.constant(IDS), training=True)
    assert layer.variables == []


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.72, 0.99])
def test_sparse_dropout_is_one_fixed_mask(rate):
    layer = SparseDropout(rate, seed=5)
    y = layer(_ones(4, 50), training=True).numpy()
    on = max(1, 50 - round(rate * 50))
    assert (y[0, 0] != 0).sum() == on
    np.testing.assert_allclose(y[y != 0], 50 / on, rtol=1e-6)
    np.testing.assert_array_equal(y, np.broadcast_to(y[:1, :1], y.shape))
    np.testing.assert_array_equal(y, layer(_ones(4, 50), training=False))
    other = SparseDropout(rate, seed=6)(_ones(4, 50)).numpy()
    assert rate == 0 or (other != y).any()


def test_units_of_an_example_without_memory():
    layer = ExampleTiedDropout(0.2, 0.5, seed=0)
    ids = np.array([3, MEMORY_OFF])
    on = layer(np.ones((2, 10), np.float32), ids, training=True)
    np.testing.assert_array_equal(on, layer.example_units(ids))


def test_sparse_dropout_refuses_a_bad_rate():
    with pytest.raises(ValueError, match="rate=1"):
        SparseDropout(1.0)


def test_dropped_fraction_is_what_a_tied_layer_drops():
    layer = ExampleTiedDropout(0.2, 0.1, seed=0)
    layer.build((None, 1000))
    off = 1 - layer.example_units(np.arange(1000)).mean()
    # A million decisions; the standard deviation is 0.0003.
    assert abs(off - dropped_fraction(0.2, 0.1)) < 0.0015
