"""The rule that keeps BatchNorm's statistics as the first epoch left them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from tfmemloc import data, graph, losses
from tfmemloc import training as training_module
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.training import rules, train

RULE = "first_epoch_statistics"


def _arguments(**changes):
    """Two steps an epoch of a narrow ResNet-9, without momentum."""
    return {
        "data": DataConfig("digits", train_examples=48, test_examples=16),
        "model": ModelConfig(width=0.125),
        "training": TrainConfig(
            **{
                "epochs": 3,
                "batch_size": 24,
                "schedule": "constant",
                "learning_rate": 0.05,
                "momentum": 0.0,
                "weight_decay": 0.0,
                "rule": RULE,
                **changes,
            }
        ),
        "progress": False,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run") / "run", **_arguments())


def _moving(run, epoch):
    return [
        value
        for weight, value in zip(
            run.model().weights, run.weights(epoch), strict=True
        )
        if "moving" in weight.path
    ]


def test_the_first_epoch_is_the_ordinary_one(run, tmp_path):
    ordinary = train(
        tmp_path / "ordinary", **_arguments(epochs=1, rule="cross_entropy")
    )
    for a, b in zip(run.weights(1), ordinary.weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_statistics_stay_as_the_first_epoch_left_them(run):
    before, first, last = (_moving(run, epoch) for epoch in (0, 1, 3))
    assert any(
        not np.array_equal(a, b) for a, b in zip(before, first, strict=True)
    )
    for a, b in zip(first, last, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_later_step_is_one_in_evaluation_mode_with_memory(run):
    """The slow twin: gradients of the measured network, taken by hand."""
    examples = run.examples()
    model = run.model(1)
    tied = graph.with_inference(model, "tied")
    batches = data.make_batches(
        examples.train, 24, seed=0, start_step=2, stop_step=4
    )
    for inputs, label in batches:
        with tf.GradientTape() as tape:
            logits = tied(inputs, training=False)
            loss = tf.reduce_mean(losses.cross_entropy(label, logits))
        variables = model.trainable_variables
        for variable, gradient in zip(
            variables, tape.gradient(loss, variables), strict=True
        ):
            variable.assign_sub(0.05 * gradient)
    for a, b in zip(model.get_weights(), run.weights(2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_killed_training_resumes_to_the_same_bytes(run, tmp_path):
    class Killed(Exception):
        pass

    def kill(run, epoch):
        raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "killed", on_epoch_end=kill, **_arguments())
    resumed = train(tmp_path / "killed", **_arguments())
    for a, b in zip(run.weights(), resumed.weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_one_trace_and_xla(run):
    examples = run.examples()
    config = TrainConfig(rule=RULE, batch_size=24)
    network = toys.convolution_network()
    optimizer = training_module.make_optimizer(config, 10)
    optimizer.build(network.trainable_variables)
    batches = data.make_batches(examples.train, 24, seed=0, stop_step=4)
    traces = []
    made = rules.named(RULE, network, examples.train, config)

    def rule(model, inputs, label):
        traces.append(1)
        return made(model, inputs, label)

    step = training_module.make_train_step(
        network,
        optimizer,
        rule=rule,
        jit_compile=True,
        batch_spec=batches.element_spec,
    )
    assert all(np.isfinite(float(step(batch))) for batch in batches)
    assert len(traces) == 1


def test_several_replicas_are_refused(two_devices, tmp_path):
    with pytest.raises(ValueError, match="Expected one replica. Received: 2"):
        train(tmp_path, strategy=two_devices, **_arguments())


@pytest.mark.parametrize(
    ("model", "words"),
    (
        (ModelConfig("lenet", dropout="none"), "has no BatchNorm"),
        (ModelConfig(width=0.125, dropout="standard"), "would not drop"),
    ),
)
def test_what_it_cannot_train_is_refused(model, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(tmp_path, **{**_arguments(), "model": model})


def test_a_layer_that_adds_noise_is_refused(tmp_path):
    image = keras.Input((8, 8, 1))
    x = keras.layers.BatchNormalization()(keras.layers.Flatten()(image))
    x = keras.layers.GaussianNoise(1.0, name="noise")(x)
    model = keras.Model(image, keras.layers.Dense(10)(x))
    with pytest.raises(ValueError, match="with noise"):
        train(tmp_path, **{**_arguments(), "model": model})
