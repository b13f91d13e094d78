"""Public functions on any input: a result that keeps its contract, or an error
of the documented type that says what was expected and what was received.

60 inputs for each function, 10,000 in `make test-all` (FUZZ_INPUTS).
"""

import inspect
import os
import re
import typing

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

import tfmemloc
from tests.fuzz_test import FUZZ
from tfmemloc.fields import hints, without_none

# Labels from 1 and the like are warned of, and go through.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CLASSES = 3
NUMBERS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats()
    | st.floats(-0.5, 1.5)
    | st.text(max_size=5)
    | st.binary(max_size=3)
)
DTYPES = st.sampled_from(
    ["bool", "u1", "i1", "<i4", ">i4", "<i8", ">i8", "f2", "<f4", ">f4", "f8"]
    + ["c8", "U3", "S2", "M8[s]"]
)


@st.composite
def arrays(draw, largest=5):
    """Arrays of any kind: odd shapes, dtypes, orders, NaN, read-only."""
    array = draw(
        nps.arrays(
            draw(DTYPES),
            draw(nps.array_shapes(min_dims=0, max_dims=4, max_side=largest)),
        )
    )
    if draw(st.booleans()):
        array = array[::-1].T if array.ndim else array
    array.flags.writeable = draw(st.booleans()) and array.flags.owndata
    return array


ANY = NUMBERS | arrays() | st.lists(NUMBERS, max_size=4)


@st.composite
def labelled(draw, kind=ANY):
    """A few pictures, and something that may be one thing for each."""
    count = draw(st.integers(0, 5))
    good = nps.arrays("i8", count, elements=st.integers(0, CLASSES - 1))
    x = np.zeros((count, 8, 8, 1), np.uint8)
    return x, draw(good | kind)


def _outcome(function, *args, **kwargs):
    """What a function gives, or None where it refuses with good reason."""
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, FileNotFoundError) as error:
        message = str(error)
        assert re.search("[Ee]xpected|must|needs", message), message
        assert re.search("[Rr]eceived|=|has |both|got no", message), message
        return None


@pytest.fixture(scope="module")
def examples():
    x = np.zeros((6, 8, 8, 1), np.uint8)
    return tfmemloc.from_arrays(x, np.arange(6) % CLASSES, ids=range(10, 16))


@FUZZ
@given(ANY, ANY)
def test_from_arrays_of_anything(x, y):
    found = _outcome(tfmemloc.from_arrays, x, y)
    if found is not None:
        # Tokens need no labels: they are followed by each other.
        assert len(found) == len(x) and (y is None or len(y) == len(x))
        assert found.label.max() < found.classes
        assert len(set(found.example_id.tolist())) == len(x)


@FUZZ
@given(labelled())
def test_labels_of_anything(pair):
    found = _outcome(tfmemloc.from_arrays, *pair)
    if found is not None:
        given_labels = np.asarray(pair[1])
        if given_labels.ndim == 1:
            np.testing.assert_array_equal(found.label, given_labels)
        assert found.label.dtype == np.int64


@FUZZ
@given(labelled())
def test_ids_of_anything(pair):
    x, ids = pair
    y = np.arange(len(x)) % CLASSES
    found = _outcome(tfmemloc.from_arrays, x, y, ids=ids)
    if found is not None and ids is not None:
        np.testing.assert_array_equal(found.example_id, np.ravel(ids))
        assert found.example_id.min() >= 0


@FUZZ
@given(labelled(), st.sampled_from(["subset", "group"]))
def test_columns_of_anything(pair, name):
    x, column = pair
    y = np.arange(len(x)) % CLASSES
    found = _outcome(tfmemloc.from_arrays, x, y, **{name: column})
    if found is not None and column is not None:
        assert len(getattr(found, name)) == len(x)


@FUZZ
@given(ANY, ANY)
def test_label_noise_of_any_rate(examples, rate, seed):
    found = _outcome(tfmemloc.add_label_noise, examples, rate, seed=seed)
    if found is not None:
        wrong = found.label != found.true_label
        assert wrong.sum() == int(rate * len(examples))
        np.testing.assert_array_equal(wrong, found.subset == "noisy")


@FUZZ
@given(st.dictionaries(NUMBERS, NUMBERS, max_size=3))
def test_labels_by_id(examples, labels):
    found = _outcome(tfmemloc.set_labels, examples, labels)
    if found is not None:
        for example_id, label in labels.items():
            place = found.example_id.tolist().index(example_id)
            assert found.label[place] == label


@FUZZ
@given(ANY, ANY)
def test_chosen_ids(examples, count, seed):
    found = _outcome(tfmemloc.choose_ids, examples, count=count, seed=seed)
    if found is not None:
        assert set(found.tolist()) <= set(examples.example_id.tolist())


@FUZZ
@given(st.lists(st.text(max_size=4) | st.binary(max_size=4) | NUMBERS))
def test_stable_ids(keys):
    found = _outcome(tfmemloc.stable_ids, keys)
    if found is not None:
        assert (found >= 0).all() and found.dtype == np.int64
        assert len(set(found.tolist())) == len(set(keys))


@FUZZ
@given(ANY, ANY, ANY, ANY)
def test_the_tied_layer(p_gen, p_mem, seed, axis):
    layer = _outcome(
        tfmemloc.ExampleTiedDropout, p_gen, p_mem, seed=seed, axis=axis
    )
    if layer is None:
        return
    found = _outcome(layer, tf.ones([2, 6, 5]), tf.range(2), training=True)
    if found is not None:
        assert set(np.unique(found)) <= {0.0, 1.0}
        assert 0 <= layer.generalization_units < layer.units


@FUZZ
@given(arrays() | NUMBERS)
def test_the_ids_of_a_tied_layer(ids):
    # Keras itself refuses these, before the layer sees them.
    assume(getattr(ids, "dtype", np.dtype("i8")).kind != "M")
    layer = tfmemloc.ExampleTiedDropout(0.5, 0.5)
    x = tf.ones([3, 8])
    try:
        found = _outcome(layer, x, example_ids=ids, training=True)
    except tf.errors.InvalidArgumentError as error:
        assert "must not be negative" in str(error)
        return
    if found is not None:
        ids = np.asarray(ids).astype(np.int64)
        np.testing.assert_array_equal(found, layer.example_units(ids))


@FUZZ
@given(ANY, ANY, ANY, ANY)
def test_tying_with_anything(p_gen, p_mem, expand, seed):
    image = keras.Input((6,), name="row")
    hidden = keras.layers.Dense(4, "relu")(image)
    network = keras.Model(image, keras.layers.Dense(CLASSES)(hidden))
    tied = _outcome(
        tfmemloc.tie_dropout,
        network,
        p_gen=p_gen,
        p_mem=p_mem,
        expand=expand,
        seed=seed,
    )
    if tied is not None:
        (row,) = tfmemloc.tie_plan(tied)
        assert row["memorization"] >= 1
        plain = tfmemloc.untie(tied)
        assert plain.count_params() == network.count_params()


@FUZZ
@given(ANY, ANY)
def test_seeds(seed, salt):
    found = _outcome(tfmemloc.fold_seed, seed, salt)
    if found is not None:
        assert 0 <= found < 2**63


@FUZZ
@given(ANY, ANY)
def test_memory_switched_off_for_any_share(share, seed):
    rows = tf.data.Dataset.from_tensor_slices((np.zeros(4), np.zeros(4)))
    batches = tfmemloc.attach_ids(rows).batch(4)
    found = _outcome(tfmemloc.switch_memory_off, batches, share, seed=seed)
    if found is not None:
        ((inputs, _),) = found
        kept = set(inputs["example_id"].numpy()) - {tfmemloc.MEMORY_OFF}
        assert kept <= set(range(4))


@FUZZ
@given(arrays(), st.none() | arrays())
def test_scores_of_any_predictions(examples, dropped, tied):
    found = _outcome(
        tfmemloc.scores_of_logits, examples, dropped=dropped, tied=tied
    )
    if found is not None:
        for values in found.scores.values():
            assert np.isfinite(values).all() and len(values) == len(examples)


@FUZZ
@given(ANY, ANY)
def test_networks_of_any_size(shape, classes):
    config = tfmemloc.ModelConfig("lenet", width=0.2)
    found = _outcome(tfmemloc.build, config, shape, classes)
    if found is not None:
        assert found.output.shape == (None, classes)


CONFIGS = [
    getattr(tfmemloc, name)
    for name in tfmemloc.__all__
    if name.endswith("Config")
]


@pytest.mark.parametrize("config", CONFIGS)
@FUZZ
@given(st.data())
def test_a_config_of_anything(config, data):
    name = data.draw(st.sampled_from(sorted(hints(config))))
    value = data.draw(ANY | st.integers(1, 3) | st.floats(0.1, 0.9))
    found = _outcome(config, **{name: value})
    if found is not None:
        kept = getattr(found, name)
        assert _is_of(kept, hints(config)[name])
        # None may stand for what the paper takes for this network.
        assert value is None or np.array_equal(kept, value)
        # And so it can be kept in a run, and read again.
        given_back = tfmemloc.configs.from_json(
            config, tfmemloc.configs.to_json(found)
        )
        assert given_back == found


def _is_of(value, hint):
    """Whether Python agrees that a value is of the type of its field."""
    wanted, may_be_none = without_none(hint)
    if value is None:
        return may_be_none
    if typing.get_origin(wanted) is typing.Literal:
        return value in typing.get_args(wanted)
    if typing.get_origin(wanted) is tuple:
        member = typing.get_args(wanted)[0]
        return type(value) is tuple and all(_is_of(v, member) for v in value)
    if wanted is float:
        return type(value) in (int, float) and np.isfinite(float(value))
    return type(value) is wanted


def _network():
    row = keras.Input((8, 8, 1), name="image")
    hidden = keras.layers.Flatten()(row)
    hidden = keras.layers.Dense(4, "relu")(hidden)
    return keras.Model(row, keras.layers.Dense(CLASSES)(hidden))


# Methods that take a source and examples: they look at both first.
METHODS = {
    name: function
    for name in tfmemloc.__all__
    if callable(function := getattr(tfmemloc, name))
    and not isinstance(function, type)
    and list(inspect.signature(function).parameters)[:2]
    == ["source", "examples"]
}
# These are made from a run alone, which none is here.
OF_RUNS = ("retrain_without", "score_examples")


@pytest.mark.parametrize("name", METHODS)
@FUZZ
@given(ANY)
def test_a_method_on_no_source(examples, name, source):
    # None is no network, by which labels are judged as well.
    assume(name != "find_label_errors" or source is not None)
    assert _outcome(METHODS[name], source, examples, **_told(name)) is None


@pytest.mark.parametrize("name", sorted({*METHODS} - {*OF_RUNS}))
@FUZZ
@given(ANY)
def test_a_method_on_no_examples(network, name, examples):
    tied = tfmemloc.tie_dropout(network, p_gen=0.5, p_mem=0.5)
    weights = tied.get_weights()
    source = tfmemloc.Snapshots(tied, {0: weights, 1: weights})
    assert _outcome(METHODS[name], source, examples, **_told(name)) is None


@pytest.mark.parametrize("name", OF_RUNS)
def test_a_method_that_needs_a_run(network, examples, name):
    assert _outcome(METHODS[name], network, examples, **_told(name)) is None


def _told(name):
    """What a method that is told what to forget is told."""
    takes = inspect.signature(METHODS[name]).parameters
    told = {"forget": [10], "directory": os.devnull}
    needed = [
        key
        for key, value in takes.items()
        if key in told and value.default is value.empty
    ]
    return {key: told[key] for key in needed}


@pytest.fixture(scope="module")
def network():
    return _network()


@FUZZ
@given(ANY)
def test_the_ids_to_forget(network, examples, forget):
    # With a step of nothing: what is asked is who may pass.
    config = tfmemloc.DurableConfig(share=0.0)
    found = _outcome(
        tfmemloc.zero_weights, network, examples, config, forget=forget
    )
    if found is not None:
        chosen = set(np.asarray(forget).tolist())
        assert chosen <= set(examples.example_id.tolist())


@FUZZ
@given(ANY)
def test_what_is_evaluated(network, examples, given_examples):
    for function in (
        tfmemloc.evaluate,
        tfmemloc.predict_logits,
        tfmemloc.recalibrate_batch_norm,
        tfmemloc.curvature_factors,
    ):
        assert _outcome(function, network, given_examples) is None
    for function in (tfmemloc.evaluate, tfmemloc.predict_logits):
        assert _outcome(function, given_examples, examples) is None


@FUZZ
@given(ANY, ANY)
def test_batches_of_any_size(examples, size, seed):
    found = _outcome(tfmemloc.make_batches, examples, size, seed=seed)
    if found is not None:
        inputs, label = next(iter(found))
        assert len(label) == len(inputs["example_id"]) == min(size, 6)


BEHAVIOURS = ("drop", "expected", "tied")


@FUZZ
@given(ANY | st.sampled_from(BEHAVIOURS))
def test_the_behaviour_of_a_network(network, inference):
    tied = tfmemloc.tie_dropout(network, p_gen=0.5, p_mem=0.5)
    found = _outcome(tfmemloc.with_inference, tied, inference)
    known = isinstance(inference, str) and inference in BEHAVIOURS
    assert (found is not None) == known


@FUZZ
@given(ANY, ANY)
def test_masks_of_anything(ids, p_mem):
    seed = tfmemloc.fold_seed(0, "mask")
    found = _outcome(tfmemloc.example_mask_numpy, seed, ids, 4, p_mem)
    if found is not None:
        assert found.shape == (len(ids), 4) and found.dtype == bool


@FUZZ
@given(ANY)
def test_units_that_are_pruned(network, keep):
    name = network.layers[2].name
    found = _outcome(tfmemloc.prune_units, network, {name: keep})
    if found is not None:
        assert found.layers[2].units == np.sum(keep)
    assert _outcome(tfmemloc.prune_units, network, keep) is None


@FUZZ
@given(st.dictionaries(NUMBERS, NUMBERS, max_size=3), ANY)
def test_scores_that_split(examples, scores, threshold):
    found = _outcome(tfmemloc.split_by_score, examples, scores, threshold)
    if found is not None:
        assert set(found.subset) <= {"atypical", "typical"}


@FUZZ
@given(ANY, ANY)
def test_confidences_of_anything(confidences, member):
    found = _outcome(
        tfmemloc.audit_membership, {"network": confidences}, member
    )
    if found is not None:
        for row in found.rows():
            assert 0 <= row["auc"] <= 1
