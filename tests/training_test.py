import dataclasses
import random
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import oracles, programs, toys
from tfmemloc import data, evaluation, models, storage, training
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.graph import tie_dropout
from tfmemloc.runs import Run
from tfmemloc.training.live import curves, write_live_page
from tfmemloc.training.progress import sampled

DATA = DataConfig(train_examples=80, test_examples=40, noise_rate=0.2)
# Quickly traced; where BatchNorm matters, the other one.
MODEL = ModelConfig("lenet", width=0.5, p_gen=0.5)
NORMALIZED = ModelConfig(width=0.125)
TRAIN = TrainConfig(epochs=4, batch_size=32, learning_rate=0.05)


def _train(directory, **changes):
    arguments = {"data": DATA, "model": MODEL, "training": TRAIN, **changes}
    return training.train(directory, progress=False, **arguments)


def _assert_same_weights(run, other, epochs=None):
    for epoch in epochs or run.epochs:
        pairs = zip(run.weights(epoch), other.weights(epoch), strict=True)
        for a, b in pairs:
            assert a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing disturbed."""
    return _train(tmp_path_factory.mktemp("runs") / "finished")


@pytest.mark.parametrize(
    ("schedule", "twin"),
    [
        ("warmup_cosine", oracles.warmup_cosine),
        ("triangle", oracles.triangle),
        ("constant", lambda peak, step, total: peak),
    ],
)
@pytest.mark.parametrize("total", [7, 500])
def test_schedules(schedule, twin, total):
    rate = training.LearningRate(0.3, schedule, total)
    again = training.LearningRate.from_config(rate.get_config())
    for step in {0, 1, total // 2, total - 1}:
        expected = twin(0.3, step, total)
        # float32 against float64: one rounding of a cosine near -1.
        np.testing.assert_allclose(rate(step), expected, rtol=1e-4, atol=3e-8)
        assert float(again(step)) == float(rate(step))


def test_steps_equal_sgd_written_by_hand():
    # One weight vector, a linear network: everything is known.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    label = np.arange(6) % 3
    image = keras.Input((4,), name="image")
    dense = keras.layers.Dense(3, use_bias=False)
    model = keras.Model(image, dense(image))
    start = dense.kernel.numpy().astype(float)
    config = TrainConfig(learning_rate=0.5, momentum=0.9)
    optimizer = training.make_optimizer(config, 8)
    optimizer.build(model.trainable_variables)
    step = training.make_train_step(model, optimizer, weight_decay=0.01)
    batch = (
        {"image": tf.constant(x), "example_id": tf.range(6)},
        tf.constant(label),
    )
    for _ in range(8):
        step(batch)

    def gradient(weight):
        logits = x @ weight
        share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return x.T @ (share - np.eye(3)[label]) / 6

    rates = [oracles.warmup_cosine(0.5, i, 8) for i in range(8)]
    expected = oracles.momentum_sgd(start, [gradient] * 8, rates, 0.9, 0.01)
    np.testing.assert_allclose(dense.kernel, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dropout", ["standard", "sparse", "example_tied"])
def test_one_trace_and_the_same_steps_with_xla(dropout, jit_compile, digits):
    if dropout == "example_tied":  # BatchNorm once.
        model = tie_dropout(toys.convolution_network(), p_gen=0.5)
    else:
        config = ModelConfig("lenet", width=0.125, dropout=dropout)
        model = models.build(config, (8, 8, 1), 10)
    optimizer = training.make_optimizer(TRAIN, 100)
    optimizer.build(model.trainable_variables)
    # Two whole batches and a short one.
    dataset = data.make_batches(
        digits.train.take(np.arange(40)), 16, seed=0, stop_step=6
    )
    step = training.make_train_step(
        model,
        optimizer,
        jit_compile=jit_compile,
        batch_spec=dataset.element_spec,
    )
    losses = [float(step(batch)) for batch in dataset]
    assert step.experimental_get_tracing_count() == 1
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_mixed_precision_learns(tmp_path, dtype, optimizer):
    run = _train(
        tmp_path / "run",
        training=dataclasses.replace(
            TRAIN, dtype=dtype, optimizer=optimizer, learning_rate=0.02
        ),
    )
    losses = [line["loss"] for line in run.history]
    assert losses[-1] < losses[0]
    assert all(w.dtype == np.float32 for w in run.weights())


def test_batch_norm_trains_in_every_epoch_and_resumes(tmp_path):
    """The authors' code leaves it in evaluation mode from epoch 2 on."""
    settings = {
        "model": NORMALIZED,
        "training": dataclasses.replace(TRAIN, epochs=3, evaluate_every=3),
    }
    run = _train(tmp_path / "whole", **settings)
    names = [weight.path for weight in run.model().weights]
    statistics = [
        [
            value
            for value, name in zip(run.weights(epoch), names, strict=True)
            if "moving_mean" in name
        ]
        for epoch in run.epochs
    ]
    assert len(statistics) == 4 and len(statistics[0]) > 5
    for before, after in zip(statistics, statistics[1:], strict=False):
        for a, b in zip(before, after, strict=True):
            assert (a != b).any()

    def stop(run, epoch):
        raise _StoppedError

    with pytest.raises(_StoppedError):
        _train(tmp_path / "parts", on_epoch_end=stop, **settings)
    _assert_same_weights(run, _train(tmp_path / "parts", **settings))


def test_history_is_what_an_evaluation_finds(finished):
    examples = finished.examples()
    last = finished.history[-1]
    assert [line["epoch"] for line in finished.history] == [1, 2, 3, 4]
    for inference in ("tied", "drop"):
        model = finished.model(inference=inference)
        metrics = evaluation.evaluate(model, examples)
        assert last["accuracy"][inference] == dict(
            zip(metrics.subsets, metrics.accuracy.tolist(), strict=True)
        )
    curve = finished.accuracy_by_epoch("tied", "noisy")
    assert curve[-1] == last["accuracy"]["tied"]["noisy"]


def test_the_same_command_gives_the_same_bytes(finished, tmp_path):
    again = _train(tmp_path / "again")
    _assert_same_weights(finished, again)
    other = _train(
        tmp_path / "other", training=dataclasses.replace(TRAIN, seed=1)
    )
    assert any(
        (a != b).any()
        for a, b in zip(finished.weights(), other.weights(), strict=True)
    )


def test_a_finished_run_is_opened_not_trained(finished):
    path = finished.weights_path(4)
    stamp = path.stat().st_mtime_ns
    again = _train(finished.directory)
    assert path.stat().st_mtime_ns == stamp
    assert again.history == finished.history


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("augment", "dropout"),
    [("none", "standard"), ("standard", "example_tied")],
)
def test_resumed_equals_uninterrupted(tmp_path, dropout, augment):
    changes = {
        "model": dataclasses.replace(MODEL, dropout=dropout),
        "training": dataclasses.replace(
            TRAIN, augment=augment, evaluate_every=4
        ),
    }
    whole = _train(tmp_path / "whole", **changes)

    def stop(run, epoch):
        if epoch == 2:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        _train(tmp_path / "parts", on_epoch_end=stop, **changes)
    parts = _train(tmp_path / "parts", **changes)
    _assert_same_weights(whole, parts)


def _command(directory, *more):
    return [
        "binaries.train",
        f"--run_dir={directory}",
        "--train_examples=80",
        "--test_examples=40",
        "--noise_rate=0.2",
        "--model=lenet",
        "--width=0.5",
        "--p_gen=0.5",
        "--epochs=6",
        "--batch_size=8",
        *more,
    ]


def _wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("epochs_before_each_kill", [(0, 2, 5)])
def test_killed_at_any_moment_the_same_command_goes_on(
    tmp_path, epochs_before_each_kill
):
    rng = random.Random(0)
    for epoch in epochs_before_each_kill:
        process = programs.launcher().start(*_command(tmp_path / "killed"))
        _wait_for(tmp_path / "killed" / "weights" / f"epoch_{epoch:04d}.npz")
        time.sleep(rng.random() * 0.1)
        process.kill()
        assert process.wait().returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        programs.launcher().run(*_command(tmp_path / name))
    killed, whole = Run.open(tmp_path / "killed"), Run.open(tmp_path / "whole")
    assert killed.epochs == whole.epochs == tuple(range(7))
    _assert_same_weights(whole, killed)
    # Half-written files of the killed processes are gone or replaced.
    for line, other in zip(killed.history, whole.history, strict=True):
        assert line["loss"] == other["loss"]
        assert line["accuracy"] == other["accuracy"]


def test_a_second_process_is_refused(tmp_path):
    directory = tmp_path / "run"
    command = _command(directory, "--epochs=500")
    first = programs.launcher().start(*command)
    try:
        _wait_for(directory / "weights" / "epoch_0001.npz")
        second = programs.launcher().run(*command, check=False)
        assert second.returncode == 1
        assert f"in use by another process (pid {first.pid})" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        first.kill()
        first.wait()


def _short_run(tmp_path):
    return _train(
        tmp_path / "short", training=dataclasses.replace(TRAIN, epochs=2)
    )


def test_a_damaged_weight_file_is_named(tmp_path, finished):
    run = _short_run(tmp_path)
    path = run.weights_path(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(storage.DamagedFileError, match="epoch_0001.npz"):
        run.model(epoch=1)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(storage.DamagedFileError, match="epoch_0001.npz"):
        run.weights(1)
    # The advice in the message works: deleted, it is made again.
    path.unlink()
    again = _train(run.directory, training=run.training)
    _assert_same_weights(again, finished, epochs=(0,))
    assert again.epochs == (0, 1, 2)


def test_a_damaged_state_is_named(tmp_path):
    run = _short_run(tmp_path)
    path = run.directory / "state.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(storage.DamagedFileError, match="state.npz"):
        _train(run.directory, training=run.training)


def test_other_flags_in_the_same_directory_are_refused(finished):
    with pytest.raises(ValueError) as error:
        _train(
            finished.directory,
            training=dataclasses.replace(TRAIN, learning_rate=0.2),
            model=dataclasses.replace(MODEL, p_mem=0.3),
        )
    message = str(error.value)
    assert "TrainConfig.learning_rate: 0.05 there, 0.2 here" in message
    assert "ModelConfig.p_mem: 0.1 there, 0.3 here" in message


def test_a_run_at_a_constant_rate_takes_more_epochs(tmp_path):
    lenet = ModelConfig("lenet", dropout="none")
    constant = dataclasses.replace(TRAIN, epochs=1, schedule="constant")
    more = dataclasses.replace(constant, epochs=3)
    _train(tmp_path / "run", model=lenet, training=constant)
    extended = _train(tmp_path / "run", model=lenet, training=more)
    whole = _train(tmp_path / "whole", model=lenet, training=more)
    assert extended.epochs == (0, 1, 2, 3)
    _assert_same_weights(extended, whole)
    assert Run.open(tmp_path / "run").training == more
    # Fewer epochs are another run, and so are more under another schedule.
    for other in (constant, dataclasses.replace(more, schedule="triangle")):
        with pytest.raises(ValueError, match="TrainConfig"):
            _train(tmp_path / "run", model=lenet, training=other)


def test_other_data_are_refused(finished):
    examples = finished.examples()
    noisier = data.add_label_noise(examples, 0.2, seed=5)
    with pytest.raises(ValueError, match="train label"):
        _train(finished.directory, examples=noisier)
    with pytest.raises(ValueError, match="train label"):
        finished.check(noisier)


def test_a_bad_loss_stops_at_once_and_keeps_the_last_good_epoch(tmp_path):
    with pytest.raises(training.TrainingDivergedError) as error:
        _train(
            tmp_path / "run",
            training=dataclasses.replace(
                TRAIN, learning_rate=1e30, schedule="constant"
            ),
        )
    message = str(error.value)
    assert "at step 1 (epoch 1" in message
    assert "epoch 0 is the last good one" in message
    run = Run.open(tmp_path / "run")
    assert run.epochs == (0,)
    assert all(np.isfinite(w).all() for w in run.weights(0))


def test_early_stopping(tmp_path):
    run = _train(
        tmp_path / "run",
        training=dataclasses.replace(TRAIN, stop_at=0.0, patience=2),
    )
    assert run.epochs == (0, 1, 2)
    again = _train(run.directory, training=run.training)
    assert len(again.history) == 2


def test_save_every_keeps_first_and_last(tmp_path):
    run = _train(
        tmp_path / "run", training=dataclasses.replace(TRAIN, save_every=3)
    )
    assert run.epochs == (0, 3, 4)
    assert len(run.history) == 4
    with pytest.raises(ValueError, match="Saved epochs: 0, 3, 4"):
        run.weights(2)


def test_evaluate_every_changes_nothing_but_what_is_measured(
    finished, tmp_path
):
    run = _train(
        tmp_path / "run", training=dataclasses.replace(TRAIN, evaluate_every=3)
    )
    measured = {line["epoch"]: line.get("accuracy") for line in run.history}
    every = {line["epoch"]: line["accuracy"] for line in finished.history}
    assert measured == {1: None, 2: None, 3: every[3], 4: every[4]}
    _assert_same_weights(run, finished)


def test_large_subsets_are_measured_on_a_sample(finished, tmp_path):
    pages = []

    def watch(run, epoch):
        write_live_page(run, epoch)
        pages.append((run.directory / "live.html").read_text())

    run = _train(
        tmp_path / "run",
        training=dataclasses.replace(TRAIN, evaluate_examples=20),
        on_epoch_end=watch,
    )
    _assert_same_weights(run, finished)
    # 64 clean and 16 noisy examples, 40 of the test; the last epoch on all.
    assert [line.get("sampled") for line in run.history] == [
        *[{"clean": 20, "test": 20}] * 3,
        None,
    ]
    assert run.history[-1]["accuracy"] == finished.history[-1]["accuracy"]
    part, counts = sampled(run.examples(), 20)
    assert counts == {"clean": 20, "test": 20} and len(part) == 20 + 16 + 20
    # The same examples each time, whatever their order.
    again, _ = sampled(run.examples().take(np.arange(120)[::-1]), 20)
    assert set(again.example_id) == set(part.example_id)
    measured = evaluation.evaluate(run.model(2, inference="drop"), part)
    for subset in part.subsets:
        assert run.history[1]["accuracy"]["drop"][subset] == pytest.approx(
            measured.of(subset)["accuracy"]
        )
    assert "clean by a sample of 20; test by a sample of 20" in pages[1]
    assert "sample" not in pages[-1]
    history = training.TrainingHistory.of({"mine": run.history})
    assert "are those of 20 examples, drawn once" in history.sentence()
    whole = training.TrainingHistory.of({"mine": finished.history})
    assert "drawn" not in whole.sentence()
    # Where a training stops by them, all are measured.
    stopping = dataclasses.replace(TRAIN, evaluate_examples=20, stop_at=1.0)
    run = _train(tmp_path / "stopping", training=stopping)
    assert not any("sampled" in line for line in run.history)


def test_one_class_is_nothing_to_learn(tmp_path, small_digits):
    images = small_digits.train.inputs["image"]
    examples = data.from_arrays(images, np.zeros(len(images), int))
    with pytest.raises(ValueError, match="has 1 class. Expected two or more"):
        _train(tmp_path / "run", examples=examples)
    assert not (tmp_path / "run").exists()


def test_tensorboard_logs(tmp_path):
    _train(tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_a_live_page_follows_the_training(tmp_path):
    pages = []

    def watch(run, epoch):
        write_live_page(run, epoch)
        pages.append((run.directory / "live.html").read_text())

    config = dataclasses.replace(TRAIN, epochs=3, evaluate_every=2)
    run = _train(tmp_path / "<run>", training=config, on_epoch_end=watch)
    first, second, last = pages
    assert "No accuracy was measured yet" in first
    assert "Epoch 1 of 3, loss" in first and " to go." in first
    assert "&lt;run&gt;" in first and "<run>" not in first
    for page in (first, second):
        assert 'http-equiv="refresh"' in page
    assert 'http-equiv="refresh"' not in last and "has ended" in last
    # A curve, and a line of the table, for each subset with memory on and off.
    found = curves(run.history, 3)
    assert [curve.name for curve in found] == [
        f"{subset}, {behaviour}"
        for behaviour in ("tied", "dropped")
        for subset in run.history[-1]["accuracy"]["tied"]
    ]
    assert last.count("<polyline") == 2 * len(found)
    ends = run.history[1], run.history[2]
    expected = [
        (720 * line["epoch"] / 3, 320 * (1 - line["accuracy"]["tied"]["noisy"]))
        for line in ends
    ]
    (noisy,) = (curve for curve in found if curve.name == "noisy, tied")
    points = [tuple(map(float, p.split(","))) for p in noisy.points.split()]
    np.testing.assert_allclose(points, expected, atol=0.06)
    # One that was stopped before its last epoch has ended as well.
    run.save_history(run.history[:2])
    write_live_page(run)
    stopped = (run.directory / "live.html").read_text()
    assert "Epoch 2 of 3" in stopped and "refresh" not in stopped
    run.save_history([])
    with pytest.raises(ValueError, match="expected a run that `train` has"):
        write_live_page(run)
    assert noisy.last == f"{ends[1]['accuracy']['tied']['noisy']:.1%}"


def test_tensorboard_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"tfmemloc\[tensorboard\]"):
        _train(tmp_path / "run", tensorboard=True)


def test_two_devices_train_as_one(tmp_path, two_devices):
    assert two_devices.num_replicas_in_sync == 2
    # 80 examples in batches of 24: the short last batch is shared too.
    config = dataclasses.replace(TRAIN, batch_size=24, epochs=2)
    one = _train(tmp_path / "one", training=config)
    two = _train(tmp_path / "two", training=config, strategy=two_devices)
    for a, b in zip(one.history, two.history, strict=True):
        # Sums in another order; measured: 4e-6 after 8 steps.
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    for a, b in zip(one.weights(), two.weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def _own_model():
    image = keras.Input((8, 8, 1), name="pixels")
    x = keras.layers.Flatten()(image)
    return keras.Model(image, keras.layers.Dense(10)(x))


def test_recording_somebody_elses_fit(tmp_path, small_digits):
    model = _own_model()
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    train = small_digits.train
    model.fit(
        data.scale_pixels(train.inputs["image"]),
        train.label,
        epochs=3,
        verbose=0,
        callbacks=[training.RecordRun(tmp_path / "run", small_digits)],
    )
    run = Run.open(tmp_path / "run")
    assert run.epochs == (0, 1, 2, 3)
    rebuilt = run.model()
    for a, b in zip(rebuilt.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    metrics = evaluation.evaluate(model, small_digits)
    assert (
        run.history[-1]["accuracy"]["plain"]["noisy"]
        == (metrics.of("noisy")["accuracy"])
    )
    assert "loss" in run.history[-1]["logs"]
    with pytest.raises(ValueError, match="already holds a run"):
        model.fit(
            data.scale_pixels(train.inputs["image"]),
            train.label,
            verbose=0,
            callbacks=[training.RecordRun(tmp_path / "run")],
        )
    with pytest.raises(ValueError, match="tfmemloc did not load"):
        run.examples()


def test_recording_somebody_elses_loop(tmp_path):
    model = _own_model()
    run = Run.create(tmp_path / "run", model)
    run.record_epoch(model, 0)
    model.set_weights([np.ones_like(w) for w in model.get_weights()])
    run.record_epoch(model, 1, {"loss": 0.5})
    again = Run.open(tmp_path / "run")
    assert again.epochs == (0, 1)
    assert again.history[-1] == {"epoch": 1, "loss": 0.5}
    assert (again.weights(1)[0] == 1).all()
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with pytest.raises(FloatingPointError, match="not finite after epoch 2"):
        run.record_epoch(model, 2)
    assert again.epochs == (0, 1)
