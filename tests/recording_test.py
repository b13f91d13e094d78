"""What is recorded of each example, against the same steps taken slowly."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles
from tfmemloc import data, storage
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.layers.tied_dropout import MEMORY_OFF, ExampleTiedDropout
from tfmemloc.scores.of_training import scores_of_recording
from tfmemloc.training.loop import train
from tfmemloc.training.record_examples import RecordExamples
from tfmemloc.training.recorder import ExampleRecorder
from tfmemloc.training.recording import Recording

CLASSES = 4


def _slow(logits, label):
    """Margin, loss and error of each example, one by one."""
    for row, y in zip(logits.astype(float), label, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        wrong = p.copy()
        wrong[y] -= 1
        yield (
            row[y] - max(np.delete(row, y)),
            oracles.cross_entropy(row[np.newaxis], [y])[0],
            np.sqrt((wrong**2).sum()),
        )


@pytest.mark.parametrize("form", ["numbers", "column", "one_hot"])
@pytest.mark.parametrize("from_logits", [True, False])
def test_the_table_is_the_slow_twin(tmp_path, rng, form, from_logits):
    ids = rng.permutation(1000)[:30]
    label = rng.integers(0, CLASSES, 30)
    logits = rng.normal(size=(30, CLASSES)).astype(np.float32)
    outputs = logits if from_logits else tf.nn.softmax(logits)
    given = {
        "numbers": label,
        "column": label[:, np.newaxis],
        "one_hot": np.eye(CLASSES)[label],
    }[form]
    recorder = ExampleRecorder(tmp_path, ids, from_logits=from_logits)
    update = tf.function(recorder.update, jit_compile=True)
    for part in np.split(np.arange(30), 3):
        update(ids[part], given[part], tf.gather(outputs, part))
    recorder.end_epoch(1)
    found = Recording.open(tmp_path)
    order = np.argsort(ids)
    np.testing.assert_array_equal(found.example_id, ids[order])
    np.testing.assert_array_equal(found.label, label[order])
    slow = np.array(list(_slow(logits, label)))[order]
    for k, name in enumerate(("margin", "loss", "error")):
        np.testing.assert_allclose(
            getattr(found, name)[0], slow[:, k], atol=2e-5
        )
    np.testing.assert_array_equal(
        found.correct[0], (logits.argmax(axis=1) == label)[order]
    )


def _tied(x):
    """`x` with an input for ids, which change nothing in training."""
    ids = keras.Input((), dtype="int64", name="example_id")
    return ExampleTiedDropout(0.5, 1.0)(x, ids), ids


def _network(with_ids):
    keras.utils.set_random_seed(0)
    image = keras.Input((8,), name="image")
    inputs, x = image, image
    if with_ids:
        x, ids = _tied(image)
        inputs = {"image": image, "example_id": ids}
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


@pytest.fixture
def points(rng):
    x = rng.normal(size=(20, 8)).astype(np.float32)
    return {"image": x, "example_id": 7 * np.arange(20)}, np.arange(
        20
    ) % CLASSES


@pytest.mark.parametrize("with_ids", [True, False])
def test_anybodys_fit_is_recorded(tmp_path, points, with_ids):
    inputs, label = points
    model = _network(with_ids)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    before = [weight.copy() for weight in model.get_weights()]
    data = tf.data.Dataset.from_tensor_slices((inputs, label)).batch(20)
    model.fit(
        data,
        shuffle=False,
        epochs=3,
        callbacks=[RecordExamples(tmp_path, inputs["example_id"])],
        verbose=0,
    )
    found = Recording.open(tmp_path)
    assert found.epochs == (1, 2, 3)
    # With all examples in one batch, the first epoch saw the first weights.
    first = inputs["image"] @ before[0] + before[1]
    slow = np.array(list(_slow(first, label)))
    np.testing.assert_allclose(found.margin[0], slow[:, 0], atol=1e-5)
    np.testing.assert_allclose(found.loss[0], slow[:, 1], atol=1e-5)
    assert (np.diff(found.loss.mean(axis=1)) < 0).all()
    # The model is as it was: fit without the callback records nothing more.
    plain = inputs if with_ids else inputs["image"]
    model.fit(plain, label, epochs=1, verbose=0)
    assert Recording.open(tmp_path).epochs == (1, 2, 3)
    assert not {"train_step", "compute_loss"} & set(vars(model))


def test_recording_changes_no_weight(tmp_path, points):
    inputs, label = points
    weights = []
    for callbacks in ([], [RecordExamples(tmp_path, inputs["example_id"])]):
        model = _network(True)
        model.compile(
            "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        model.fit(
            inputs,
            label,
            batch_size=8,
            shuffle=False,
            epochs=2,
            callbacks=callbacks,
            verbose=0,
        )
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_recording_is_gone_on_with_and_never_mixed(tmp_path, points):
    inputs, label = points
    model = _network(True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", [loss])

    def fit(**options):
        model.fit(
            inputs,
            label,
            callbacks=[RecordExamples(tmp_path, inputs["example_id"])],
            verbose=0,
            **options,
        )

    fit(epochs=3)
    first = Recording.open(tmp_path)
    with pytest.raises(ValueError, match="already holds a recording"):
        fit(epochs=1)
    assert Recording.open(tmp_path).epochs == (1, 2, 3)
    fit(initial_epoch=1, epochs=2)
    found = Recording.open(tmp_path)
    assert found.epochs == (1, 2)
    np.testing.assert_array_equal(found.margin[0], first.margin[0])
    assert (found.margin[1] != first.margin[1]).any()


def test_a_model_with_a_loss_of_its_own_and_an_interrupted_fit(
    tmp_path, points
):
    inputs, label = points

    class Own(keras.Model):
        def compute_loss(self, x, y, y_pred, sample_weight):
            return super().compute_loss(x, y, y_pred, sample_weight)

    plain = _network(False)
    model = Own(plain.inputs, plain.outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    record = RecordExamples(tmp_path, inputs["example_id"])
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            inputs, label, epochs=2, callbacks=[record, Stop()], verbose=0
        )
    assert Recording.open(tmp_path).epochs == (1,)
    model.fit(inputs["image"], label, verbose=0)  # No ids any more.
    assert Recording.open(tmp_path).epochs == (1,)


def test_two_devices_record_into_one_table(tmp_path, two_devices, points):
    inputs, label = points
    recorder = ExampleRecorder(tmp_path, inputs["example_id"])

    @tf.function
    def step(batch):
        ids, y = batch
        logits = tf.one_hot(y, CLASSES) * tf.cast(ids, tf.float32)[:, None]
        recorder.update(ids, y, logits)

    data = tf.data.Dataset.from_tensor_slices(
        (inputs["example_id"], label)
    ).batch(10)
    for batch in two_devices.experimental_distribute_dataset(data):
        two_devices.run(step, (batch,))
    recorder.end_epoch(1)
    np.testing.assert_allclose(
        Recording.open(tmp_path).margin[0], inputs["example_id"]
    )


def test_fit_on_two_devices_knows_whose_outputs_are_whose(
    tmp_path, two_devices, rng
):
    """Replicas are traced in turns, which switch inside of the network."""
    x = rng.normal(size=(16, 8)).astype(np.float32)
    ids, label = 3 * np.arange(16), np.arange(16) % CLASSES
    with two_devices.scope():
        image = keras.Input((8,), name="image")
        h = keras.layers.BatchNormalization(synchronized=True)(image)
        h, id_input = _tied(h)
        inputs = {"image": image, "example_id": id_input}
        model = keras.Model(inputs, keras.layers.Dense(CLASSES)(h))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.0), loss)
        kernel, bias = model.layers[-1].get_weights()
        data = tf.data.Dataset.from_tensor_slices(
            ({"image": x, "example_id": ids}, label)
        ).batch(16)
        model.fit(
            data,
            shuffle=False,
            verbose=0,
            callbacks=[RecordExamples(tmp_path, ids)],
        )
    found = Recording.open(tmp_path)
    h = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
    slow = np.array(list(_slow(h @ kernel + bias, label)))
    np.testing.assert_allclose(found.margin[0], slow[:, 0], atol=1e-4)


def test_our_training_records_what_its_steps_saw(tmp_path, digits):
    examples = digits.take(np.arange(len(digits)) % 10 == 0)
    run = train(
        tmp_path / "run",
        data=DataConfig(),
        examples=examples,
        model=ModelConfig(width=0.125, p_gen=0.25),
        training=TrainConfig(epochs=2, batch_size=512, learning_rate=0.1),
        progress=False,
    )
    found = Recording.open(run.directory / "recording").of(examples.train)
    assert found.epochs == (1, 2)
    # The first step, again: initial weights, BatchNorm on batch statistics.
    part = examples.train
    logits = run.model(0)(
        {
            "image": data.scale_pixels(part.inputs["image"]),
            "example_id": part.example_id,
        },
        training=True,
    ).numpy()
    slow = np.array(list(_slow(logits, part.label)))
    np.testing.assert_allclose(found.margin[0], slow[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.error[0], slow[:, 2], atol=1e-4)
    assert run.history[0]["loss"] == pytest.approx(found.loss[0].mean(), 1e-4)
    assert [row["seen"] for row in found.rows()] == [len(part)] * 2


def test_a_recording_of_other_data_is_refused(tmp_path, small_digits):
    part = small_digits.train
    recorder = ExampleRecorder(tmp_path, part.example_id)
    logits = tf.zeros([len(part), 10])
    recorder.update(part.example_id, part.label, logits)
    recorder.end_epoch(1)
    found = Recording.open(tmp_path)
    assert found.of(part).label.tolist() == part.label.tolist()
    other = dataclasses.replace(part, label=part.true_label)
    with pytest.raises(ValueError, match="of other labels than those"):
        found.of(other)
    with pytest.raises(ValueError, match="no example with id"):
        found.of(small_digits.test)
    with pytest.raises(ValueError, match="a recording with other example"):
        ExampleRecorder(tmp_path, part.example_id + 1)


def test_a_recording_knows_images_and_labels(tmp_path, small_digits):
    part = small_digits.train
    recorder = ExampleRecorder(tmp_path, small_digits)
    for epoch, label in ((1, part.label), (2, (part.label + 1) % 10)):
        recorder.update(part.example_id, label, tf.zeros([len(part), 10]))
        recorder.end_epoch(epoch)
    with pytest.raises(ValueError, match="different labels of 80 examples"):
        Recording.open(tmp_path)
    recorder.begin_epoch(2)
    found = Recording.open(tmp_path)
    assert found.of(part).epochs == (1,)
    turned = dataclasses.replace(
        part, inputs={"image": part.inputs["image"][:, ::-1]}
    )
    with pytest.raises(ValueError, match="of other inputs than those"):
        found.of(turned)
    other = dataclasses.replace(small_digits, label=small_digits.true_label)
    with pytest.raises(ValueError, match="a recording with other labels"):
        ExampleRecorder(tmp_path, other)


def test_missing_epochs_are_no_course_of_a_training(tmp_path, small_digits):
    part = small_digits.train
    recorder = ExampleRecorder(tmp_path, part)
    for epoch in (1, 2, 6):
        recorder.update(part.example_id, part.label, tf.zeros([80, 10]))
        recorder.end_epoch(epoch)
    with pytest.raises(ValueError, match="holds the epochs 1, 2, 6. Expected"):
        scores_of_recording(Recording.open(tmp_path), part)


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_models_without_a_graph_are_recorded(tmp_path, points, kind):
    inputs, label = points

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(CLASSES)

        def call(self, inputs):
            return self.dense(inputs["image"])

    model = (
        Own()
        if kind == "subclassed"
        else keras.Sequential([keras.layers.Dense(CLASSES)])
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    model.fit(
        inputs,
        label,
        verbose=0,
        callbacks=[RecordExamples(tmp_path, inputs["example_id"])],
    )
    assert np.isfinite(Recording.open(tmp_path).margin).all()


def test_after_an_error_the_model_is_as_it_was(tmp_path, points):
    inputs, label = points
    model = _network(False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    record = RecordExamples(tmp_path / "no_ids", inputs["example_id"])
    with pytest.raises(ValueError, match="dict with .example_id"):
        model.fit(inputs["image"], label, callbacks=[record], verbose=0)
    model.fit(inputs["image"], label, verbose=0)
    # Keras goes on after a loss that is not finite; a recording does not.
    broken = {**inputs, "image": np.full((20, 8), np.inf, np.float32)}
    record = RecordExamples(tmp_path / "nan", inputs["example_id"])
    with pytest.raises(ValueError, match="not finite, of 20 examples"):
        model.fit(broken, label, callbacks=[record], verbose=0)
    assert not {"train_step", "compute_loss"} & set(vars(model))


def test_a_train_step_of_ones_own_beside_validation(tmp_path, points):
    inputs, label = points

    class Own(keras.Model):
        def train_step(self, data):
            return {"loss": keras.ops.sum(self(data[0], training=True))}

    plain = _network(False)
    model = Own(plain.inputs, plain.outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    record = RecordExamples(tmp_path, inputs["example_id"])
    with pytest.raises(ValueError, match="whose own train_step does not call"):
        model.fit(
            inputs,
            label,
            validation_data=(inputs["image"], label),
            callbacks=[record],
            verbose=0,
        )


def test_examples_that_were_never_seen(tmp_path, small_digits):
    part = small_digits.train
    recorder = ExampleRecorder(tmp_path, part.example_id)
    for epoch in (1, 2):  # The first 70, then the last 70 but one.
        some = part.take(np.arange(70) if epoch == 1 else np.arange(9, 79))
        recorder.update(some.example_id, some.label, tf.zeros([70, 10]))
        recorder.end_epoch(epoch)
    found = Recording.open(tmp_path)
    with pytest.raises(ValueError, match="1 examples were seen in none of"):
        found.of(part)
    seen = found.of(part.take(np.arange(79)))
    assert np.isnan(seen.margin[1, 0]) and np.isfinite(seen.margin[0, 0])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "a list of integers"),
        ([0.5, 1.5], "a list of integers"),
        ([[1], [2]], "a list of integers"),
        ([3, 4, 3], "some twice"),
    ],
)
def test_bad_ids_are_refused(tmp_path, ids, words):
    with pytest.raises(ValueError, match=words):
        ExampleRecorder(tmp_path, ids)


def test_mistakes_in_fit_are_named(tmp_path, points):
    inputs, label = points
    model = _network(True)
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    few = RecordExamples(tmp_path / "few", inputs["example_id"][:-1])
    with pytest.raises(ValueError, match="not among the 19 that were"):
        model.fit(inputs, label, callbacks=[few], verbose=0)
    plain = _network(False)
    plain.compile("sgd", "mse")
    callback = RecordExamples(tmp_path / "plain", inputs["example_id"])
    with pytest.raises(ValueError, match="dict with .example_id"):
        plain.fit(inputs["image"], label, callbacks=[callback], verbose=0)
    model.compile("sgd", lambda y, p: keras.ops.sum(p, axis=1))
    silent = RecordExamples(tmp_path / "silent", inputs["example_id"])
    with pytest.raises(ValueError, match="Pass from_logits=True or False"):
        model.fit(inputs, label, callbacks=[silent], verbose=0)
    recorder = ExampleRecorder(tmp_path / "none", [1, 2])
    with pytest.raises(ValueError, match="one for each of two or more"):
        recorder.update([1, 2], [0, 1], tf.ones([2, 1]))
    recorder.update([1, 2], [0, 5], tf.ones([2, 3]))
    with pytest.raises(ValueError, match="labels that are no class"):
        recorder.end_epoch(1)
    with pytest.raises(ValueError, match="Nothing was recorded in epoch 1"):
        recorder.end_epoch(1)


def test_files_that_are_no_recording(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no recorded epoch"):
        Recording.open(tmp_path / "nowhere")
    storage.write_arrays(tmp_path / "epoch_0001.npz", {"margin": np.ones(3)})
    with pytest.raises(storage.DamagedFileError, match="one recording"):
        Recording.open(tmp_path)


def test_nothing_is_noted_of_examples_without_their_memory(tmp_path):
    recorder = ExampleRecorder(tmp_path, [4, 9, 2])
    recorder.begin_epoch(1)
    logits = tf.constant([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    ids = tf.constant([4, MEMORY_OFF, 9], tf.int64)
    recorder.update(ids, tf.constant([0, 1, 0]), logits)
    recorder.end_epoch(1)
    margin = Recording.open(tmp_path).margin[0]
    # In the order of the ids: 2, 4, 9.
    np.testing.assert_array_equal(margin, [np.nan, 1.0, 2.0])
