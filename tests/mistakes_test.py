"""Mistakes that people make: each is refused at the door, or made right.

A message names what was wrong, what was expected and what was received.
"""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmemloc
from tfmemloc import from_arrays
from tfmemloc.data.batches import check_augmentable
from tfmemloc.moved import predict_moved

N = 20
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
Y = np.arange(N) % 3
PIXELS = np.zeros((N, 8, 8, 1), np.uint8)


def _with(x, row, value):
    x = x.copy()
    x[row] = value
    return x


def _network(outputs=3):
    inputs = keras.Input((6,), name="features")
    x = keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(outputs, name="head")(x))


def _tied():
    return tfmemloc.tie_dropout(_network(), p_gen=0.5, p_mem=0.2)


EXAMPLES = from_arrays(X, Y)
NONE = EXAMPLES.take(np.zeros(N, bool))
BIG = 2**63

# What is done -> the words of the error that follows.
REFUSED = {
    "no rows": (lambda: from_arrays(X[:0], Y[:0]), "at least one row"),
    "rows of objects": (
        lambda: from_arrays(np.array([1, "a"], object), [0, 1]),
        "expected numbers .* dtype object",
    ),
    "rows of different lengths": (
        lambda: from_arrays([[1, 2], [3]], [0, 1]),
        "one shape and kind. Received: rows of different lengths",
    ),
    "complex numbers": (
        lambda: from_arrays(X.astype(complex), Y),
        "dtype complex128",
    ),
    "NaN": (lambda: from_arrays(_with(X, 3, np.nan), Y), "instance 3"),
    "infinity": (lambda: from_arrays(_with(X, 4, np.inf), Y), "instance 4"),
    "one-hot labels": (
        lambda: from_arrays(X, np.eye(3)[Y]),
        r"np.argmax\(y, axis=1\)",
    ),
    "several labels": (
        lambda: from_arrays(X, np.stack([Y, Y], axis=1)),
        "Several labels of one example are not supported",
    ),
    "float labels": (lambda: from_arrays(X, Y / 2), r"y.astype\(int\)"),
    "labels that are names": (
        lambda: from_arrays(X, np.array(["a", "b", "c"])[Y]),
        "makes integers of names",
    ),
    "negative labels": (lambda: from_arrays(X, Y - 1), "Received: -1"),
    "too few labels": (
        lambda: from_arrays(X, Y[:-1]),
        r"shape \(19,\).* as many labels as there are rows",
    ),
    "labels of other classes": (
        lambda: from_arrays(X, Y, classes=2),
        "expected label from 0 to 1. Received: 2",
    ),
    "no classes": (
        lambda: from_arrays(X, Y, classes=0),
        "at least one class. Received: classes=0",
    ),
    "float ids": (
        lambda: from_arrays(X, Y, ids=np.arange(N) / 1),
        "ids expected 20 integers",
    ),
    "ids of another length": (
        lambda: from_arrays(X, Y, ids=range(19)),
        r"Received: shape \(19,\)",
    ),
    "equal ids": (
        lambda: from_arrays(X, Y, ids=np.zeros(N, int)),
        "each example id once. Received more often: 0",
    ),
    "negative ids": (
        lambda: from_arrays(X, Y, ids=np.arange(N) - 5),
        "must not be negative. Received: -5",
    ),
    "ids over 2**63": (
        lambda: from_arrays(X, Y, ids=np.arange(N, dtype=np.uint64) + BIG),
        r"below 2\*\*63",
    ),
    "subsets without a name": (
        lambda: from_arrays(X, Y, subset=[""] * N),
        "subset expected 20 names",
    ),
    "subsets of another length": (
        lambda: from_arrays(X, Y, subset=["a"]),
        r"Received: shape \(1,\)",
    ),
    "test examples without labels": (
        lambda: from_arrays(X, Y, X),
        "y_test expected labels",
    ),
    "test examples of another width": (
        lambda: from_arrays(X, Y, X[:, :3], Y),
        "the same names, sizes and dtypes",
    ),
    "an id that is not there": (
        lambda: EXAMPLES.of_ids([99]),
        "no example with id 99. Expected ids from 0 to 19",
    ),
    "an id of nobody": (
        lambda: EXAMPLES.take(np.arange(0)).of_ids([3]),
        "Expected none, as it has no examples",
    ),
    "moved pictures of nobody": (
        lambda: predict_moved(None, EXAMPLES.take(np.arange(0))),
        "has no examples. Expected some",
    ),
    "beliefs that nothing reads": (
        lambda: tfmemloc.CurvatureConfig(believe="all", refit_epochs=0),
        "believe='all' is about refits",
    ),
    "colours of grey pictures": (
        lambda: check_augmentable(
            from_arrays(np.zeros((3, 8, 8, 1)), [0, 1, 0]), "strong"
        ),
        "strong",
    ),
    "an id that is a fraction": (
        lambda: EXAMPLES.of_ids([0.5]),
        "ids that are integers. Received: dtype float64, 0.5",
    ),
    "a subset that is not there": (
        lambda: EXAMPLES.of_subset("nisy"),
        "no subset 'nisy'. Expected one of 'clean'",
    ),
    "a rate over 1": (
        lambda: tfmemloc.add_label_noise(EXAMPLES, 2.0, seed=0),
        "at most 1.0. Received: rate=2.0",
    ),
    "a rate that is NaN": (
        lambda: tfmemloc.add_label_noise(EXAMPLES, float("nan"), seed=0),
        "Received: rate=nan",
    ),
    "a label that is a fraction": (
        lambda: tfmemloc.set_labels(EXAMPLES, {0: 1.5}),
        "labels that are integers. Received: dtype float64, 1.5",
    ),
    "an id that is a string": (
        lambda: tfmemloc.set_labels(EXAMPLES, {"0": 1}),
        "ids that are integers. Received: dtype <U1, 0",
    ),
    "a label that is no class": (
        lambda: tfmemloc.set_labels(EXAMPLES, {0: 7}),
        "expected label from 0 to 2. Received: 7",
    ),
    "a score that is NaN": (
        lambda: tfmemloc.split_by_score(
            EXAMPLES, dict.fromkeys(range(N), float("nan")), 0.5
        ),
        "Received: NaN for ids 0, 1",
    ),
    "equal keys": (
        lambda: tfmemloc.stable_ids(["a", "a"]),
        "Keys 'a' and 'a' collide",
    ),
    "no examples to evaluate": (
        lambda: tfmemloc.evaluate(_network(), NONE),
        "has no examples",
    ),
    "no examples to predict": (
        lambda: tfmemloc.predict_logits(_network(), NONE),
        "has no examples",
    ),
    "no examples to recalibrate by": (
        lambda: tfmemloc.recalibrate_batch_norm(_network(), NONE),
        "has no examples",
    ),
    "labels beyond the outputs": (
        lambda: tfmemloc.evaluate(_network(outputs=2), EXAMPLES),
        "from 0 to 1, for 2 outputs of the network. Received: labels up to 2",
    ),
    "inputs of another width": (
        lambda: tfmemloc.evaluate(_network(), from_arrays(X[:, :3], Y)),
        r"expected features of shape \[None, 6\]. Received: \[20, 3\]",
    ),
    "groups where there are none": (
        lambda: tfmemloc.evaluate(_network(), EXAMPLES, by="group"),
        "has no groups",
    ),
    "a mistyped behaviour": (
        lambda: tfmemloc.with_inference(_tied(), "dropped"),
        "one of 'drop', 'expected', 'tied'. Received: inference='dropped'",
    ),
    "a share of 0": (
        lambda: tfmemloc.tie_dropout(_network(), p_gen=0.0),
        "above 0 and at most 1. Received: p_gen=0.0",
    ),
    "a share that is NaN": (
        lambda: tfmemloc.tie_dropout(_network(), p_mem=float("nan")),
        "Received: p_mem=nan",
    ),
    "to tie twice": (
        lambda: tfmemloc.tie_dropout(_tied()),
        "has tied layers already: hidden_tied",
    ),
    "to tie a layer that is not there": (
        lambda: tfmemloc.tie_dropout(_network(), after=["hiden"]),
        "no layer hiden. Expected some of head, hidden",
    ),
    "to tie a network without blocks": (
        lambda: tfmemloc.tie_dropout(
            keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        ),
        "Name the layers to tie by `after`",
    ),
    "float ids to the layer": (
        lambda: tfmemloc.ExampleTiedDropout(0.5, 0.2)(
            X, np.arange(N) / 1, training=True
        ),
        "an integer dtype. Received: dtype float",
    ),
    "too few ids to the layer": (
        lambda: tfmemloc.ExampleTiedDropout(0.5, 0.2)(
            X, np.arange(5), training=True
        ),
        "one for each example of the batch",
    ),
    "no ids to the layer": (
        lambda: tfmemloc.ExampleTiedDropout(0.5, 0.2)(X, training=True),
        "got no example ids",
    ),
    "no run": (
        lambda: tfmemloc.Run.open("nowhere"),
        "nowhere holds no run",
    ),
    "no wrong labels to search for": (
        lambda: tfmemloc.find_critical_units(_network(), EXAMPLES),
        "no noisy or atypical examples. Expected some, or `ids`",
    ),
}
WRONG_TYPES = {
    "a seed that is a fraction": (
        lambda: tfmemloc.add_label_noise(EXAMPLES, 0.5, seed=1.5),
        "Received: seed=1.5 of type float",
    ),
    "keys that are integers": (
        lambda: tfmemloc.stable_ids([1, 2]),
        "Integers can be ids as they are",
    ),
    "one key": (lambda: tfmemloc.stable_ids("abc"), "Received: str 'abc'"),
    "keys in Dataset.map": (
        lambda: tf.data.Dataset.from_tensor_slices(["a"]).map(
            lambda key: tfmemloc.stable_ids(tf.expand_dims(key, 0))
        ),
        "where all examples would get one id",
    ),
    "a model for an engine": (
        lambda: tfmemloc.per_example_norms(_network(), EXAMPLES),
        r"GradientEngine\(model\). Received: Functional",
    ),
    "a model for a run": (
        lambda: tfmemloc.rewind_layers(X, EXAMPLES),
        "Expected a Run, a Keras model",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_it_is_refused(mistake):
    make, words = REFUSED[mistake]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        make()


@pytest.mark.parametrize("mistake", WRONG_TYPES)
def test_a_wrong_type_is_refused(mistake):
    make, words = WRONG_TYPES[mistake]
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize(
    "x",
    [
        X.tolist(),
        X.astype(">f4"),
        X[:, ::-1][:, ::-1],
        np.asfortranarray(X),
        tf.constant(X),
    ],
    ids=["list", "big-endian", "strided", "fortran", "tensor"],
)
def test_arrays_of_any_form_are_the_same(x):
    found = tfmemloc.as_arrays(from_arrays(x, Y.tolist()))["features"]
    np.testing.assert_array_equal(found, X)


def test_ids_of_a_column_and_read_only_arrays():
    x = X.copy()
    x.flags.writeable = False
    examples = from_arrays(x, Y[:, np.newaxis], ids=np.arange(N)[:, np.newaxis])
    np.testing.assert_array_equal(examples.example_id, np.arange(N))
    np.testing.assert_array_equal(examples.label, Y)


def test_names_in_any_script():
    examples = from_arrays(
        {"größe": X}, Y, subset=np.array(["früh", "晚"])[Y % 2]
    )
    assert examples.subsets == ("früh", "晚")
    assert "20" not in repr(examples) and "größe" in repr(examples)


def test_labels_from_one_are_warned_of():
    with pytest.warns(UserWarning, match="go from 1 to 3.* pass y - 1"):
        examples = from_arrays(X, Y + 1)
    assert examples.classes == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_arrays(X, Y + 1, classes=4)


@pytest.mark.parametrize(
    ("name", "meant"), [("val", "validation"), ("Holdout", "heldout")]
)
def test_a_subset_that_looks_kept_aside_is_warned_of(name, meant):
    with pytest.warns(UserWarning, match=f"Expected '{meant}'"):
        found = from_arrays(X, Y, subset=[name] * 3 + ["clean"] * (N - 3))
    assert found.is_trained_on.all()


def test_keys_of_bytes_are_their_text():
    np.testing.assert_array_equal(
        tfmemloc.stable_ids(["é", b"b"]),
        tfmemloc.stable_ids(["é".encode(), "b"]),
    )


def test_one_id_for_all_is_warned_of(tmp_path):
    model = _network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    record = tfmemloc.RecordExamples(tmp_path, np.arange(N))
    with pytest.warns(UserWarning, match="id 0 came 20 times, and 19 of the"):
        model.fit(
            {"features": X, "example_id": np.zeros(N, int)},
            Y,
            verbose=0,
            callbacks=[record],
        )


class Unknown(keras.layers.Layer):
    """A layer of which pruning knows nothing."""

    def build(self, shape):
        self.mix = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, x):
        return x @ self.mix


def test_pruning_that_takes_nothing_out_says_so():
    inputs = keras.Input((6,), name="features")
    x = Unknown(name="hidden")(inputs)
    model = keras.Model(inputs, Unknown(name="head")(x))
    model = tfmemloc.tie_dropout(model, after=["hidden"], p_gen=0.5)
    with pytest.warns(UserWarning, match="Nothing could be sliced out"):
        pruned = tfmemloc.prune_memorization(model)
    ids = np.zeros(N, int)
    np.testing.assert_allclose(
        pruned(X),
        model({"features": X, "example_id": ids}),
        atol=1e-6,
    )


def _backbone():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, name="first")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU(name="first_end")(x)
    x = keras.layers.Conv2D(8, 3, name="second")(x)
    x = keras.layers.ReLU(name="second_end")(x)
    return keras.Model(inputs, x, name="backbone")


def _nested():
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.GlobalAveragePooling2D()(_backbone()(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def test_the_blocks_of_a_nested_backbone_are_tied():
    model = tfmemloc.tie_dropout(_nested(), p_gen=0.5)
    places = [row["layer"] for row in tfmemloc.tie_plan(model)]
    assert places == ["first_end_tied", "second_end_tied"]


def test_batch_norm_of_a_nested_backbone_is_recalibrated(rng):
    x = rng.normal(3, 2, size=(N, 8, 8, 1)).astype(np.float32)
    examples = from_arrays(x, Y)
    model = _nested()
    before = model.get_weights()
    new = tfmemloc.recalibrate_batch_norm(model, examples)
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    first = model.get_layer("backbone").get_layer("first")
    norm = new.get_layer("backbone").layers[2]
    values = np.asarray(first(x))
    np.testing.assert_allclose(
        norm.moving_mean, values.mean(axis=(0, 1, 2)), rtol=1e-4
    )
    np.testing.assert_allclose(
        norm.moving_variance, values.var(axis=(0, 1, 2)), rtol=1e-4
    )


HUB = {
    "ResNet": lambda hub: hub.ResNetImageClassifier(
        backbone=hub.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[3],
            stackwise_num_filters=[64, 16],
            stackwise_num_blocks=[1, 1],
            stackwise_num_strides=[1, 2],
            block_type="basic_block",
            image_shape=(16, 16, 3),
        ),
        num_classes=3,
    ),
    "ViT": lambda hub: hub.ViTImageClassifier(
        backbone=hub.ViTBackbone((16, 16, 3), 8, 2, 2, 16, 32), num_classes=3
    ),
    "MobileNet": lambda hub: hub.MobileNetImageClassifier(
        backbone=hub.MobileNetBackbone(
            stackwise_expansion=[[16, 16]],
            stackwise_num_blocks=[2],
            stackwise_num_filters=[[8, 8]],
            stackwise_kernel_size=[[3, 3]],
            stackwise_num_strides=[[2, 1]],
            stackwise_se_ratio=[[None, 0.25]],
            stackwise_activation=[["relu", "hard_swish"]],
            stackwise_padding=[[1, 1]],
            input_num_filters=8,
            output_num_filters=16,
            depthwise_filters=8,
            depthwise_stride=2,
            depthwise_residual=False,
            last_layer_filter=16,
            image_shape=(16, 16, 3),
        ),
        num_classes=3,
    ),
    "BERT": lambda hub: hub.BertTextClassifier(
        backbone=hub.BertBackbone(50, 2, 2, 16, 32, max_sequence_length=6),
        num_classes=3,
    ),
    "GPT-2": lambda hub: hub.GPT2CausalLM(
        backbone=hub.GPT2Backbone(50, 2, 2, 16, 32, max_sequence_length=6)
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_networks_of_keras_hub_are_tied(name):
    keras_hub = pytest.importorskip("keras_hub")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = HUB[name](keras_hub.models)
    tied = tfmemloc.tie_dropout(model, p_gen=0.5, p_mem=0.2)
    assert len(tfmemloc.tie_plan(tied)) >= 2
    inputs = {
        tensor.name: np.ones(
            (2, *(size or 6 for size in tensor.shape[1:])), tensor.dtype
        )
        for tensor in keras.tree.flatten(model.input)
    }
    plain = tied({**inputs, "example_id": np.arange(2)}, training=False)
    other = tfmemloc.with_inference(tied, "tied")(
        {**inputs, "example_id": np.array([5, 9])}, training=False
    )
    assert plain.shape == other.shape
    assert not np.allclose(other[0], other[1])
