"""What recording margin and loss of each example costs a training."""

from __future__ import annotations

import tempfile

import keras
import numpy as np
import tensorflow as tf

from benchmarks.harness import Row, ratios
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.models import build
from tfmemloc.training.optimizer import make_optimizer
from tfmemloc.training.record_examples import RecordExamples
from tfmemloc.training.recorder import ExampleRecorder
from tfmemloc.training.step import make_train_step

_SHAPE = (28, 28, 1)
_BATCH = 64
_STEPS = 20
_EXAMPLES = _BATCH * _STEPS


def run() -> list[Row]:
    """An epoch of half a ResNet-9, recorded and not: our loop, Keras's fit."""
    with tempfile.TemporaryDirectory() as folder:
        return ratios(
            "recording",
            {
                "train": _train(None),
                "train_recorded": _train(f"{folder}/train"),
                "fit": _fit(None),
                "fit_recorded": _fit(f"{folder}/fit"),
            },
            [
                (
                    "half resnet9 epoch: recorded / not",
                    "train_recorded",
                    "train",
                    1.05,
                    True,
                ),
                (
                    "half resnet9 fit: recorded / not",
                    "fit_recorded",
                    "fit",
                    1.05,
                    True,
                ),
            ],
        )


def _data():
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (_EXAMPLES, *_SHAPE)).astype(np.float32)
    return (
        {"image": image, "example_id": np.arange(_EXAMPLES)},
        rng.integers(0, 10, _EXAMPLES),
    )


def _train(directory: str | None):
    model = build(ModelConfig(width=0.5), _SHAPE, 10)
    optimizer = make_optimizer(TrainConfig(), 1000)
    optimizer.build(model.trainable_variables)
    batches = tf.data.Dataset.from_tensor_slices(_data()).batch(_BATCH)
    batches = list(batches)
    recorder = None
    if directory is not None:
        recorder = ExampleRecorder(directory, np.arange(_EXAMPLES))
    step = make_train_step(
        model,
        optimizer,
        batch_spec=tf.nest.map_structure(tf.TensorSpec.from_tensor, batches[0]),
        recorder=recorder,
    )

    def epoch():
        for batch in batches:
            loss = step(batch)
        if recorder is not None:
            recorder.end_epoch(1)
        return float(loss)

    return epoch


def _fit(directory: str | None):
    model = build(ModelConfig(width=0.5), _SHAPE, 10)
    model.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # Slower on a CPU.
    )
    inputs, label = _data()
    # Traced once for many epochs, as in a real training: the callback of the
    # first `fit` stays in place for the others.
    model.fit(inputs, label, batch_size=_BATCH, verbose=0)
    if directory is None:
        return lambda: model.fit(inputs, label, batch_size=_BATCH, verbose=0)
    callback = RecordExamples(directory, inputs["example_id"])
    callback.set_model(model)
    callback.on_train_begin()

    def epoch():
        model.fit(
            inputs,
            label,
            batch_size=_BATCH,
            verbose=0,
            callbacks=[_EndOfEpoch(callback.recorder)],
        )

    return epoch


class _EndOfEpoch(keras.callbacks.Callback):
    def __init__(self, recorder: ExampleRecorder):
        super().__init__()
        self._recorder = recorder

    def on_epoch_end(self, epoch, logs=None):
        self._recorder.end_epoch(epoch + 1)
