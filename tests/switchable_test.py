"""BatchNorm with statistics of its own for examples whose memory is off."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import graph, prune_memorization
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.evaluation import recalibrate_batch_norm
from tfmemloc.graph.tying import tie_dropout, with_inference
from tfmemloc.graph.untying import untie
from tfmemloc.layers.switchable_batch_norm import SwitchableBatchNormalization
from tfmemloc.layers.tied_dropout import MEMORY_OFF
from tfmemloc.models import build
from tfmemloc.training import train

SHAPE = (8, 8, 1)
CONFIG = ModelConfig(width=0.125, expand=0.5, own_statistics=True)


@pytest.fixture
def batch(rng):
    x = rng.normal(2, 3, (6, 4, 4, 5)).astype(np.float32)
    ids = np.array([7, MEMORY_OFF, 9, MEMORY_OFF, MEMORY_OFF, 3])
    return x, ids


def _moments(x):
    return x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))


def test_each_kind_is_normalized_by_itself(batch):
    x, ids = batch
    layer = SwitchableBatchNormalization(momentum=0.9, epsilon=1e-3)
    found = layer(x, ids, training=True).numpy()
    off = ids == MEMORY_OFF
    for kind, name in ((off, "moving"), (~off, "tied")):
        mean, variance = _moments(x[kind])
        expected = (x[kind] - mean) / np.sqrt(variance + 1e-3)
        np.testing.assert_allclose(found[kind], expected, rtol=1e-4, atol=1e-5)
        followed = [
            getattr(layer, f"{name}_{which}").numpy()
            for which in ("mean", "variance")
        ]
        np.testing.assert_allclose(followed[0], 0.1 * mean, rtol=1e-4)
        np.testing.assert_allclose(followed[1], 0.9 + 0.1 * variance, rtol=1e-4)


@pytest.mark.parametrize("kind", ("moving", "tied"))
def test_a_kind_that_is_not_there_keeps_its_statistics(batch, kind):
    x, _ = batch
    ids = np.full(6, MEMORY_OFF if kind == "tied" else 1)
    layer = SwitchableBatchNormalization()
    assert np.isfinite(layer(x, ids, training=True)).all()
    np.testing.assert_array_equal(getattr(layer, f"{kind}_mean"), np.zeros(5))
    np.testing.assert_array_equal(
        getattr(layer, f"{kind}_variance"), np.ones(5)
    )


@pytest.mark.parametrize(
    ("inference", "kind"),
    [("drop", "moving"), ("expected", "tied"), ("tied", "tied")],
)
def test_inference_uses_the_statistics_of_its_kind(batch, inference, kind):
    x, ids = batch
    layer = SwitchableBatchNormalization(inference=inference)
    for _ in range(3):
        layer(x, ids, training=True)
    mean = getattr(layer, f"{kind}_mean").numpy()
    variance = getattr(layer, f"{kind}_variance").numpy()
    np.testing.assert_allclose(
        layer(x, ids, training=False),
        (x - mean) / np.sqrt(variance + 1e-3),
        rtol=1e-4,
        atol=1e-5,
    )


def test_in_drop_it_is_ordinary_batch_norm_without_ids(batch):
    x, ids = batch
    layer = SwitchableBatchNormalization()
    layer(x, ids, training=True)
    plain = keras.layers.BatchNormalization()
    plain.build(x.shape)
    plain.set_weights(layer.get_weights()[:4])
    np.testing.assert_array_equal(
        layer(x, training=False), plain(x, training=False)
    )


def test_training_needs_ids(batch):
    with pytest.raises(ValueError, match="got no example ids"):
        SwitchableBatchNormalization()(batch[0], training=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = train(
        tmp_path_factory.mktemp("switchable") / "run",
        data=DataConfig(train_examples=200, test_examples=100),
        model=CONFIG,
        training=TrainConfig(
            epochs=8,
            batch_size=50,
            learning_rate=0.1,
            rule="drop_pass_gate",
            memory_off=0.5,
        ),
        progress=False,
    )
    return run, run.examples()


def test_the_drop_of_a_run_needs_no_recalibration(trained):
    run, examples = trained
    from tfmemloc.evaluation import evaluate

    model = run.model(inference="drop")
    own = evaluate(model, examples).of("test")["accuracy"]
    recalibrated = recalibrate_batch_norm(graph.served_network(model), examples)
    again = evaluate(recalibrated, examples).of("test")["accuracy"]
    # 100 test examples: 5 points are one standard error.
    assert own > again - 0.1
    with pytest.raises(ValueError, match="nothing to recalibrate"):
        recalibrate_batch_norm(model, examples)


def test_pruned_and_untied_networks_have_ordinary_layers(trained):
    run, examples = trained
    model = run.model(inference="drop")
    image = tf.constant(
        np.random.default_rng(0).normal(size=(3, *SHAPE)), tf.float32
    )
    feed = {"image": image, "example_id": tf.range(3, dtype=tf.int64)}
    expected = model(feed, training=False)
    for plain, fed in (
        (prune_memorization(model), image),
        (untie(model), feed),
    ):
        kinds = {type(layer) for layer in graph.flat_layers(plain)}
        assert SwitchableBatchNormalization not in kinds
        np.testing.assert_allclose(
            plain(fed, training=False), expected, rtol=1e-4, atol=1e-5
        )


def test_behaviours_share_all_variables(trained):
    run, _ = trained
    model = run.model()
    tied = with_inference(model, "tied")
    assert [id(v) for v in tied.variables] == [id(v) for v in model.variables]


def test_a_switchable_network_is_saved_and_read(trained, tmp_path):
    run, _ = trained
    tied = with_inference(run.model(), "tied")
    tied.save(tmp_path / "tied.keras")
    again = keras.models.load_model(tmp_path / "tied.keras")
    feed = {
        "image": tf.ones([2, *SHAPE]),
        "example_id": tf.constant([4, 9], tf.int64),
    }
    np.testing.assert_array_equal(
        again(feed, training=False), tied(feed, training=False)
    )


def test_a_network_of_ones_own_gets_switchable_layers():
    image = keras.Input((8,), name="row")
    x = image
    for name in "ab":
        x = keras.layers.Dense(6, name=name)(x)
        x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    given = keras.Model(image, keras.layers.Dense(3)(x))
    tied = tie_dropout(given, expand=1.0, own_statistics=True)
    kinds = {layer.name: type(layer) for layer in tied.layers}
    # Nothing is tied before the first one.
    assert kinds["a_norm"] is keras.layers.BatchNormalization
    assert kinds["b_norm"] is SwitchableBatchNormalization
    # Both sets of statistics are the given ones until it is trained.
    x = np.random.default_rng(0).normal(3, 2, (16, 8)).astype(np.float32)
    given.get_layer("b_norm").moving_mean.assign(np.arange(6.0))
    again = tie_dropout(given, expand=1.0, own_statistics=True)
    for inference in ("drop", "expected", "tied"):
        found = graph.with_inference(again, inference)
        feed = {"row": x, "example_id": np.arange(16)}
        np.testing.assert_allclose(found(feed), given(x), rtol=1e-5)
    mine = tied.get_layer("b_norm")
    assert mine.gamma is given.get_layer("b_norm").gamma
    assert mine.moving_mean is given.get_layer("b_norm").moving_mean


@pytest.mark.parametrize(
    "changes", [{}, {"rule": "drop_pass_gate", "memory_off": 0.0}]
)
def test_statistics_that_nothing_would_follow_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match="Expected a rule that lets some"):
        train(
            tmp_path / "run",
            model=CONFIG,
            training=TrainConfig(epochs=1, **changes),
            progress=False,
        )


def test_own_statistics_are_of_tied_networks():
    with pytest.raises(ValueError, match="own_statistics=True"):
        ModelConfig(dropout="none", own_statistics=True)


def test_all_layers_get_their_statistics():
    network = build(
        ModelConfig(width=0.125, places="layers", own_statistics=True),
        SHAPE,
        10,
    )
    switchable = [
        layer.name
        for layer in graph.batch_norms(network)
        if isinstance(layer, SwitchableBatchNormalization)
    ]
    assert "res1a.norm" in switchable and "conv1.norm" not in switchable


@pytest.mark.parametrize("inference", ("drop", "tied"))
def test_gradients_by_example_have_a_closed_form(trained, inference):
    from tfmemloc.gradients import GradientEngine

    run, examples = trained
    model = run.model(inference=inference)
    some = examples.train.take(np.arange(6))
    feed = {
        "image": tf.constant(some.inputs["image"], tf.float32) / 8 - 1,
        "example_id": tf.constant(some.example_id),
    }
    label = tf.constant(some.label)
    engine = GradientEngine(model)
    found = engine.gradients(feed, label)
    assert engine.fallbacks == ()
    with tf.GradientTape() as tape:
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
            label[2:3],
            model({k: v[2:3] for k, v in feed.items()}, training=False),
        )
    expected = tape.gradient(loss, model.trainable_variables)
    for mine, slow in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine[2], slow, rtol=1e-3, atol=1e-5)


def test_a_replica_without_rows_leaves_the_statistics(batch):
    x, ids = batch
    layer = SwitchableBatchNormalization()
    layer(x, ids, training=True)
    before = layer.get_weights()
    assert layer(x[:0], ids[:0], training=True).shape == (0, 4, 4, 5)
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_channels_may_come_first(batch):
    x, ids = batch
    last = SwitchableBatchNormalization()(x, ids, training=True)
    first = SwitchableBatchNormalization(axis=1)(
        np.moveaxis(x, -1, 1), ids, training=True
    )
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), last, atol=1e-5)


def test_a_mask_is_refused(batch):
    x, ids = batch
    with pytest.raises(ValueError, match="Expected inputs without a mask"):
        SwitchableBatchNormalization()(
            x, ids, training=True, mask=np.ones((6, 4), bool)
        )


@pytest.mark.parametrize("name", ("routed_suspects", "late_tying"))
def test_other_rules_that_pass_without_memory_follow_them(name, tmp_path):
    image = keras.Input(SHAPE, name="image")
    x = keras.layers.Flatten()(image)
    for k in range(2):
        x = keras.layers.Dense(8, name=f"hidden{k}")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    network = tie_dropout(
        keras.Model(image, keras.layers.Dense(10)(x)),
        expand=0.5,
        own_statistics=True,
    )
    run = train(
        tmp_path,
        model=network,
        data=DataConfig(train_examples=64, test_examples=32),
        training=TrainConfig(epochs=1, batch_size=32, rule=name, early=1.0),
        progress=False,
    )
    names = [weight.path for weight in run.model().weights]
    before, after = run.weights(0), run.weights(1)
    for kind in ("moving_mean",) + ("tied_mean",) * (name != "late_tying"):
        assert any(
            (a != b).any()
            for n, a, b in zip(names, before, after, strict=True)
            if n.endswith(kind)
        )
