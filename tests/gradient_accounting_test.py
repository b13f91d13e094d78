import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmemloc import data, models, report, training
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data.kinds import scale_pixels
from tfmemloc.probes import gradient_accounting as accounting
from tfmemloc.probes.gradient_accounting import GradientAccounting
from tfmemloc.snapshots import Snapshots


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return training.train(
        tmp_path_factory.mktemp("runs") / "run",
        data=DataConfig(train_examples=80, test_examples=40, noise_rate=0.2),
        model=ModelConfig(width=0.125, dropout="none"),
        training=TrainConfig(epochs=2, batch_size=100),
        progress=False,
    )


def _plain_gradients(model, part, whole, batch_statistics):
    """The slow twin: a tape on the subset (or, coupled, on the whole)."""
    feed = whole if batch_statistics else part
    image = scale_pixels(feed.inputs["image"])
    before = model.get_weights()
    with tf.GradientTape() as tape:
        logits = model(
            {"image": image, "example_id": feed.example_id},
            training=batch_statistics,
        )
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            feed.label, logits
        )
        mine = np.isin(feed.example_id, part.example_id)
        loss = tf.reduce_sum(losses * mine) / len(whole)
    model.set_weights(before)
    gradients = tape.gradient(
        loss, [v.value for v in model.trainable_variables]
    )
    return {
        v.path: g.numpy()
        for v, g in zip(model.trainable_variables, gradients, strict=True)
    }


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_every_number_equals_its_slow_twin(run, batch_statistics):
    examples = run.examples()
    before = {epoch: run.weights(epoch) for epoch in run.epochs}
    result = accounting.account_gradients(
        run,
        examples,
        accounting.AccountingConfig(batch_statistics=batch_statistics),
        progress=False,
    )
    assert result.epochs == (0, 1, 2)
    assert result.groups[0] == "conv1"
    assert result.groups[-1] == "head"
    for e, epoch in enumerate(result.epochs):
        model = run.model(epoch)
        train = examples.train
        twins = {
            name: _plain_gradients(
                model, train.of_subset(name), train, batch_statistics
            )
            for name in ("clean", "noisy")
        }
        for g, group in enumerate(result.groups):
            parts = {
                name: [
                    value
                    for path, value in twin.items()
                    if path.split(".")[0] == group
                ]
                for name, twin in twins.items()
            }
            flat = {
                name: np.concatenate([p.ravel() for p in part])
                for name, part in parts.items()
            }
            for s, name in enumerate(("clean", "noisy")):
                np.testing.assert_allclose(
                    result.norm[e, g, s],
                    np.linalg.norm(flat[name]),
                    rtol=1e-3,
                )
                np.testing.assert_allclose(
                    result.authors_norm[e, g, s],
                    sum(
                        np.linalg.norm(p) / np.sqrt(p.size) for p in parts[name]
                    ),
                    rtol=1e-3,
                )
            cosine = np.dot(flat["clean"], flat["noisy"]) / np.prod(
                [np.linalg.norm(v) for v in flat.values()]
            )
            # The authors' code takes this after the gradients were
            # overwritten by their norms, when it can only be 1.
            np.testing.assert_allclose(result.cosine[e, g], cosine, atol=1e-3)
    for epoch, values in before.items():
        for a, b in zip(values, run.weights(epoch), strict=True):
            np.testing.assert_array_equal(a, b)


def test_shares_and_quantiles_are_of_per_example_norms(run):
    examples = run.examples()
    result = accounting.account_gradients(
        run,
        examples,
        accounting.AccountingConfig(epochs=(2,)),
        progress=False,
    )
    model = run.model(2)
    squares = []
    for i in range(len(examples)):
        one = examples.take(np.array([i]))
        twin = _plain_gradients(model, one, one, False)
        squares.append(
            sum(np.sum(g**2) for p, g in twin.items() if "conv2." in p)
        )
    squares = np.array(squares)
    noisy, train = examples.subset == "noisy", examples.subset != "test"
    g = result.groups.index("conv2")
    np.testing.assert_allclose(
        result.share[0, g], squares[noisy].sum() / squares[train].sum(), 1e-3
    )
    np.testing.assert_allclose(
        result.norm_quantiles[0, g, result.subsets.index("noisy")],
        np.quantile(np.sqrt(squares[noisy]), result.quantiles),
        rtol=1e-3,
    )


def test_a_planted_opposition_is_found():
    """Two examples with the same pixels and different labels.

    A linear model on them gets gradients that cancel: the cosine is -1.
    """
    pixels = np.full((4, 8, 8, 1), 200, np.uint8)
    label = np.array([0, 1, 0, 0])
    examples = data.Examples(
        inputs={"image": pixels},
        label=label,
        true_label=np.zeros(4, int),
        example_id=np.arange(4),
        subset=np.array(["clean", "noisy", "test", "test"]),
        classes=2,
    )
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Flatten()(inputs)
    model = keras.Model(
        inputs, keras.layers.Dense(2, kernel_initializer="zeros")(x)
    )
    result = accounting.account_gradients(
        Snapshots(model, {0: model.get_weights()}), examples, progress=False
    )
    np.testing.assert_allclose(result.cosine, [[-1.0]], atol=1e-6)
    np.testing.assert_allclose(result.share, [[0.5]], atol=1e-6)
    np.testing.assert_allclose(result.norm[0, 0, 0], result.norm[0, 0, 1])
    assert not result.batch_statistics  # There is no BatchNorm.


def test_result_saves_loads_and_lists(run, tmp_path):
    result = accounting.account_gradients(
        run,
        run.examples(),
        accounting.AccountingConfig(epochs=(0, 2)),
        progress=False,
    )
    result.save(tmp_path / "accounting")
    loaded = GradientAccounting.load(tmp_path / "accounting")
    assert loaded.rows() == result.rows()
    assert len(result.rows()) == 2 * 9 * 3
    assert loaded.epochs == (0, 2)
    section = report.section_of(loaded)
    assert set(section.figures) == {
        "gradient_norms",
        "gradient_cosines",
        "gradient_shares",
    }


def test_while_memorizing_takes_the_epochs_between():
    shape = (4, 1, 2)
    norm = np.ones(shape)
    norm[:, 0, 1] = [9, 2, 4, 9]
    result = GradientAccounting(
        groups=("conv",),
        epochs=(0, 1, 2, 3),
        subsets=("clean", "noisy"),
        quantiles=(0.5,),
        batch_statistics=True,
        norm=norm,
        authors_norm=norm,
        cosine=np.array([[1.0], [-0.5], [-0.7], [1.0]]),
        share=np.array([[0.0], [0.4], [0.6], [1.0]]),
        norm_quantiles=np.ones((*shape, 1)),
        accuracy=np.array([[1, 0.1], [1, 0.3], [1, 0.9], [1, 1.0]]),
    )
    (row,) = result.while_memorizing()
    assert row == {
        "group": "conv",
        "norm_ratio": 3.0,
        "cosine": pytest.approx(-0.6),
        "share": 0.5,
        "epochs": 2,
    }
    assert "2 accounted epochs" in result.sentence()


def test_callback_in_somebodys_fit(small_digits):
    model = models.build(
        ModelConfig(width=0.125, dropout="none"), (8, 8, 1), 10
    )
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    callback = accounting.AccountGradients(small_digits, every=2)
    train = small_digits.train
    feed = {
        "image": scale_pixels(train.inputs["image"]),
        "example_id": train.example_id,
    }
    model.fit(feed, train.label, epochs=4, verbose=0, callbacks=[callback])
    result = callback.result()
    assert result.epochs == (0, 2, 4)
    again = accounting.account_gradients(
        Snapshots(model, {4: model.get_weights()}), small_digits, progress=False
    )
    np.testing.assert_allclose(result.norm[2], again.norm[0], rtol=1e-5)


def test_without_noise_there_is_nothing_to_compare(run):
    examples = data.add_label_noise(run.examples(), 0.0, seed=0)
    result = accounting.account_gradients(
        Snapshots(run.model(0), {0: run.weights(0)}), examples, progress=False
    )
    assert np.isnan(result.cosine).all()
    assert result.while_memorizing() == []
    assert "nothing to say" in result.sentence()
    assert set(report.section_of(result).figures) == {"gradient_norms"}


def test_bad_input_is_refused(run):
    with pytest.raises(ValueError, match="epoch 9. Saved epochs: 0, 1, 2"):
        accounting.account_gradients(
            run,
            run.examples(),
            accounting.AccountingConfig(epochs=(1, 9)),
        )
    other = data.add_label_noise(run.examples(), 0.1, seed=7)
    with pytest.raises(ValueError, match="train label"):
        accounting.account_gradients(run, other)
