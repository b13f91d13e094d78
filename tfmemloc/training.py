"""Training that repeats, resumes, and reports on every subset.

The paper's protocol (section 3, appendix): SGD with momentum and weight decay,
cross-entropy, linear warm-up and cosine, or a triangle. One `tf.function` with
one trace takes every step, the short last batch of an epoch included.

The same command gives the same bytes: the order of the examples is a function
of (seed, step), and after each epoch everything that the next one needs is
written down, so that a killed run goes on as if nothing had happened.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import batches, evaluation, storage, surgery
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data import Examples, load
from tfmemloc.recording import ExampleRecorder
from tfmemloc.runs import (
    Run,
    build_network,
    check_finite,
    variable_arrays,
)

_WARMUP = 0.1
_TRIANGLE_PEAK = 0.4


class TrainingDivergedError(FloatingPointError):
    """The loss became NaN or infinite."""


@keras.saving.register_keras_serializable(package="tfmemloc")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """The paper's learning-rate schedules, per step.

    The rate of a step is the curve's value in the middle of that step, so that
    neither the first nor the last step is wasted on a rate of 0.

    Args:
        peak: the highest rate.
        schedule: `warmup_cosine`, `triangle` or `constant`.
        total_steps: steps of the whole training.
    """

    def __init__(self, peak: float, schedule: str, total_steps: int):
        self.peak = peak
        self.schedule = schedule
        self.total_steps = total_steps

    def __call__(self, step):
        """The rate of a step, a float32 scalar."""
        done = (tf.cast(step, tf.float32) + 0.5) / self.total_steps
        if self.schedule == "constant":
            return tf.constant(self.peak, tf.float32)
        if self.schedule == "triangle":
            rise, fall = (
                done / _TRIANGLE_PEAK,
                (1 - done) / (1 - _TRIANGLE_PEAK),
            )
            return self.peak * tf.minimum(rise, fall)
        cosine = 0.5 + 0.5 * tf.cos(
            math.pi * tf.maximum(0.0, done - _WARMUP) / (1 - _WARMUP)
        )
        return self.peak * tf.minimum(done / _WARMUP, cosine)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this schedule anew."""
        return {
            "peak": self.peak,
            "schedule": self.schedule,
            "total_steps": self.total_steps,
        }


def train(
    directory: str | os.PathLike,
    *,
    data: DataConfig | None = None,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    examples: Examples | None = None,
    start_from: Run | None = None,
    strategy: tf.distribute.Strategy | None = None,
    tensorboard: bool = False,
    download: bool = False,
    progress: bool = True,
    on_epoch_end: Callable[[Run, int], None] | None = None,
) -> Run:
    """Trains a network into a run directory; goes on where it was stopped.

    Called again with the same arguments, a finished run is opened, and a
    killed one resumed after its last whole epoch; both end with the weights of
    an uninterrupted run, bit for bit on the same machine.

    Args:
        directory: of the run.
        data: which data; the default is scikit-learn's digits, 10 % noise.
        model: which network.
        training: how to train it.
        examples: the data, where they are the caller's own or loaded already.
        start_from: begin with the last weights of another run of the same
            network, not with a fresh initialization.
        strategy: for instance `tf.distribute.MirroredStrategy()`.
        tensorboard: write logs to `<directory>/tensorboard`.
        download: let TFDS fetch missing data.
        progress: show a progress bar.
        on_epoch_end: called with the run and the epoch after it was saved.

    Returns:
        The finished run.

    Raises:
        ValueError: the directory holds a run with other settings or data.
        DirectoryInUseError: another process trains in the directory.
        TrainingDivergedError: the loss is not finite; the last good epoch is
            kept.

    Example:
        >>> run = train("runs/digits", model=ModelConfig(width=0.5))
        >>> run.history[-1]["accuracy"]["drop"]["noisy"]
        0.0
    """
    model_config = model or ModelConfig()
    training = training or TrainConfig()
    if examples is None:
        data = data or DataConfig()
        examples = load(data, download=download)
    if examples.classes < 2:
        raise ValueError(
            f"{examples.name} has {examples.classes} class. Expected two or "
            "more: with one, there is nothing to learn."
        )
    with storage.lock_directory(directory):
        strategy = strategy or tf.distribute.get_strategy()
        with strategy.scope():
            network = build_network(
                model_config,
                examples,
                training,
                synchronized=strategy.num_replicas_in_sync > 1,
            )
        run = Run.create(
            directory,
            network,
            data=data,
            model_config=model_config,
            training=training,
            examples=examples,
        )
        if start_from is not None:
            start_from.load_weights(network)
            _check_start(run, network)
        loop = _Loop(run, network, examples, training, strategy)
        loop.run_epochs(progress, tensorboard, on_epoch_end)
    return run


def _check_start(run: Run, network: keras.Model) -> None:
    """Refuses to go on with a run that began with other weights."""
    if 0 in run.epochs and any(
        not np.array_equal(there, here)
        for there, here in zip(
            run.weights(0), network.get_weights(), strict=True
        )
    ):
        raise ValueError(
            f"{run.directory} holds a run that started from other weights. "
            "Use the run of then, or another directory."
        )


class _Loop:
    """The state of one training: network, optimizer, epoch."""

    def __init__(self, run, network, examples, training, strategy):
        self.run = run
        self.network = network
        self.examples = examples
        self.training = training
        self.strategy = strategy
        self.train_examples = examples.train
        self.steps = batches.steps_per_epoch(
            len(self.train_examples), training.batch_size
        )
        with strategy.scope():
            total = self.steps * training.epochs
            self.rate = make_rate(training, total)
            self.optimizer = make_optimizer(training, total)
            self.optimizer.build(network.trainable_variables)
        self.recorder: ExampleRecorder | None = None
        self.history: list[dict[str, Any]] = []

    def run_epochs(self, progress, tensorboard, on_epoch_end) -> None:
        """Trains from the saved state to the last epoch."""
        writer = _summary_writer(self.run, tensorboard)
        epoch = self._restore()
        if epoch >= self.training.epochs or self._may_stop():
            return
        self.recorder = ExampleRecorder(
            self.run.directory / "recording", self.train_examples
        )
        self.recorder.begin_epoch(epoch + 1)
        predictors = _predictors(self.network)
        dataset = batches.make_batches(
            self.train_examples,
            self.training.batch_size,
            seed=self.training.seed,
            augment=self.training.augment,
            start_step=epoch * self.steps,
            stop_step=self.training.epochs * self.steps,
        )
        dataset = self.strategy.experimental_distribute_dataset(dataset)
        train_step = make_train_step(
            self.network,
            self.optimizer,
            weight_decay=self.training.weight_decay,
            jit_compile=self.training.jit_compile,
            strategy=self.strategy,
            batch_spec=dataset.element_spec,
            recorder=self.recorder,
        )
        iterator = iter(dataset)
        with tqdm.tqdm(
            total=self.training.epochs * self.steps,
            initial=epoch * self.steps,
            unit="step",
            desc=self.run.directory.name,
            disable=not progress,
            mininterval=0.5,
        ) as bar:
            while epoch < self.training.epochs and not self._may_stop():
                started = time.perf_counter()
                loss = self._train_epoch(train_step, iterator, epoch, bar)
                epoch += 1
                line = self._describe(epoch, loss, predictors, started)
                self._save(epoch, line)
                _write_summary(writer, line)
                bar.set_postfix_str(_postfix(line))
                if on_epoch_end is not None:
                    on_epoch_end(self.run, epoch)

    def _train_epoch(self, train_step, iterator, epoch, bar) -> float:
        """Takes the steps of one epoch; returns the mean loss.

        The loss of a step is looked at when the next one is under way, so
        that an accelerator never waits for the check.
        """
        total, pending = 0.0, None
        for step in range(epoch * self.steps, (epoch + 1) * self.steps):
            loss = train_step(next(iterator))
            if pending is not None:
                total += self._checked(pending, step - 1)
            pending = loss
            bar.update()
        return (total + self._checked(pending, step)) / self.steps

    def _checked(self, loss, step: int) -> float:
        loss = float(loss)
        if not math.isfinite(loss):
            epoch = step // self.steps
            rate = float(self.rate(step))
            raise TrainingDivergedError(
                f"The loss is {loss} at step {step} (epoch {epoch + 1}, "
                f"learning rate {rate:.3g}). Training stopped; epoch {epoch} "
                f"is the last good one and is kept in {self.run.directory}. "
                "Lower the learning rate, or look for bad pixels in the data."
            )
        return loss

    def _describe(self, epoch, loss, predictors, started) -> dict[str, Any]:
        """The history line of an epoch that was just trained."""
        line = {
            "epoch": epoch,
            "step": epoch * self.steps,
            "loss": loss,
            # Of the last step that was taken, not of the next one.
            "learning_rate": float(self.rate(epoch * self.steps - 1)),
        }
        if self._is_due(epoch, self.training.evaluate_every):
            line["accuracy"] = _accuracies(predictors, self.examples)
        line["seconds"] = round(time.perf_counter() - started, 3)
        return line

    def _save(self, epoch: int, line: Mapping[str, Any]) -> None:
        """Keeps an epoch: weights, history, and last of all the state."""
        self.history.append(dict(line))
        self.recorder.end_epoch(epoch)
        if self._is_kept(epoch):
            self.run.save_weights(self.network, epoch)
        self.run.save_history(self.history)
        arrays = variable_arrays(self._state_variables())
        check_finite(arrays, epoch)
        arrays["epoch"] = np.array(epoch)
        storage.write_arrays(self.run.directory / "state.npz", arrays)

    def _is_kept(self, epoch: int) -> bool:
        return self._is_due(epoch, self.training.save_every) or self._may_stop()

    def _is_due(self, epoch: int, every: int) -> bool:
        return epoch % every == 0 or epoch == self.training.epochs

    def _state_variables(self) -> list:
        return [*self.network.variables, *self.optimizer.variables]

    def _restore(self) -> int:
        """Loads the saved state; returns its epoch, or starts at 0."""
        path = self.run.directory / "state.npz"
        if path.exists():
            arrays = storage.read_arrays(path)
            epoch = int(arrays.pop("epoch", -1))
            history = self.run.history
            saved = set(self.run.epochs)
            is_whole = len(history) >= epoch and all(
                kept in saved
                for kept in range(epoch + 1)
                if kept % self.training.save_every == 0
            )
            if is_whole:
                self._assign_state(path, arrays)
                self.history = history[:epoch]
                return epoch
        # Nothing, or too little, is there: the same training from the start
        # writes the same files again.
        self.run.save_weights(self.network, 0)
        return 0

    def _assign_state(self, path: pathlib.Path, arrays: Mapping) -> None:
        variables = self._state_variables()
        wanted = [tuple(variable.shape) for variable in variables]
        if [array.shape for array in arrays.values()] != wanted:
            raise storage.DamagedFileError(
                f"{path} holds the state of another network or optimizer. "
                "Delete it to train anew from the first epoch."
            )
        for variable, array in zip(variables, arrays.values(), strict=True):
            variable.assign(array)

    def _may_stop(self) -> bool:
        return may_stop(self.training, self.history, self.examples)


def may_stop(
    training: TrainConfig,
    history: Sequence[Mapping[str, Any]],
    examples: Examples,
) -> bool:
    """Whether `stop_at` has been reached for `patience` epochs.

    Args:
        training: of the run.
        history: of the run so far.
        examples: which it was trained on.
    """
    recent = history[-training.patience :]
    if training.stop_at is None or len(recent) < training.patience:
        return False
    return all(
        _train_accuracy(line, examples) >= training.stop_at for line in recent
    )


def _train_accuracy(line: Mapping[str, Any], examples: Examples) -> float:
    """Accuracy on all training examples, memorization units on."""
    accuracy = line["accuracy"].get("tied") or line["accuracy"].get("plain")
    counts = {
        subset: np.sum(examples.subset == subset)
        for subset in examples.subsets
        if subset != "test"
    }
    right = sum(accuracy[subset] * count for subset, count in counts.items())
    return right / sum(counts.values())


def make_rate(training: TrainConfig, total_steps: int) -> LearningRate:
    """The learning rate of a config, by step."""
    return LearningRate(training.learning_rate, training.schedule, total_steps)


def make_optimizer(
    training: TrainConfig, total_steps: int
) -> keras.optimizers.Optimizer:
    """The optimizer of a config; weight decay is left to the loss."""
    rate = make_rate(training, total_steps)
    if training.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=training.momentum)
    if training.dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def make_train_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    weight_decay: float = 0.0,
    jit_compile: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    batch_spec: Any = None,
    recorder: ExampleRecorder | None = None,
) -> Callable[[Any], tf.Tensor]:
    """A traced function that takes one step and gives the loss before it.

    The loss is the mean cross-entropy of the batch. The weight decay adds
    weight_decay * w to the gradient of every trainable weight, as PyTorch's
    optimizers do. BatchNorm is in training mode: batch statistics, and its
    moving statistics move.

    Args:
        model: `{"image", "example_id"}` or images alone -> logits.
        optimizer: built for the model's trainable variables.
        weight_decay: see above.
        jit_compile: compile with XLA.
        strategy: replicas that share each batch.
        batch_spec: the element spec of the batches; None infers it and may
            trace more than once.
        recorder: notes what the step sees of each example.

    Returns:
        `step((inputs, label))` -> float32 scalar.
    """
    strategy = strategy or tf.distribute.get_strategy()
    variables = model.trainable_variables

    def replica_step(batch):
        inputs, label = batch
        context = tf.distribute.get_replica_context()
        size = tf.cast(tf.shape(label)[0], tf.float32)
        total_size = context.all_reduce("sum", size)
        with tf.GradientTape() as tape:
            logits = model(_arranged(model, inputs), training=True)
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(
                label, tf.cast(logits, tf.float32)
            )
            # A replica without examples has an empty sum, hence no NaN.
            loss = tf.reduce_sum(entropy) / total_size
            decay = tf.add_n(
                [tf.nn.l2_loss(tf.convert_to_tensor(v)) for v in variables]
            )
            share = weight_decay / context.num_replicas_in_sync
            scaled = optimizer.scale_loss(loss + share * decay)
        if recorder is not None:
            recorder.update(inputs["example_id"], label, logits)
        # Keras's optimizer itself adds up the gradients of the replicas.
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    def step(batch):
        loss = strategy.run(replica_step, (batch,))
        return strategy.reduce("sum", loss, axis=None)

    signature = None if batch_spec is None else [batch_spec]
    return tf.function(
        step,
        input_signature=signature,
        jit_compile=jit_compile,
        reduce_retracing=batch_spec is None,
    )


def _arranged(model: keras.Model, inputs: Mapping[str, tf.Tensor]):
    return evaluation.model_inputs(model, inputs["image"], inputs["example_id"])


def _predictors(
    network: keras.Model,
) -> dict[str, evaluation.Predictor]:
    """What is measured after each epoch: memory on, and memory off."""
    if not surgery.tied_layers(network):
        return {"plain": evaluation.make_predictor(network)}
    return {
        inference: evaluation.make_predictor(
            surgery.with_inference(network, inference)
        )
        for inference in ("tied", "drop")
    }


def _accuracies(
    predictors: Mapping[str, evaluation.Predictor], examples: Examples | None
) -> dict[str, dict[str, float]]:
    """Accuracy of each subset, in each behaviour, now."""
    accuracy = {}
    for inference, predict in predictors.items():
        metrics = evaluation.evaluate(predict, examples)
        accuracy[inference] = dict(
            zip(metrics.subsets, metrics.accuracy.tolist(), strict=True)
        )
    return accuracy


def _postfix(line: Mapping[str, Any]) -> str:
    """The progress bar's words: epoch, loss, accuracies."""
    parts = [f"epoch {line['epoch']}", f"loss {line['loss']:.3f}"]
    for inference, accuracy in line.get("accuracy", {}).items():
        numbers = " ".join(
            f"{subset} {100 * value:.0f}%" for subset, value in accuracy.items()
        )
        parts.append(f"{inference}: {numbers}")
    return ", ".join(parts)


def _summary_writer(run: Run, enabled: bool):
    if not enabled:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "TensorBoard logs were asked for, but TensorBoard is not "
            "installed. Run: pip install 'tfmemloc[tensorboard]'"
        )
    return tf.summary.create_file_writer(str(run.directory / "tensorboard"))


def _write_summary(writer, line: Mapping[str, Any]) -> None:
    if writer is None:
        return
    with writer.as_default(step=line["epoch"]):
        for name in ("loss", "learning_rate"):
            tf.summary.scalar(name, line[name])
        for inference, accuracy in line.get("accuracy", {}).items():
            for subset, value in accuracy.items():
                tf.summary.scalar(f"accuracy/{inference}/{subset}", value)
    writer.flush()


class RecordRun(keras.callbacks.Callback):
    """Records anybody's `model.fit` into a run directory.

    Weights at the beginning and after each epoch, and, where `examples` are
    given, the accuracy of every subset. Every probe works on such a run.

    Args:
        directory: of the run; must not hold another one.
        examples: measured after each epoch; ids as in the training.
        data: config of the data, if `tfmemloc.load` loaded them.

    Example:
        >>> model.fit(batches, epochs=10,
        ...           callbacks=[RecordRun("runs/mine", examples)])
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        examples: Examples | None = None,
        *,
        data: DataConfig | None = None,
    ):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.examples = examples
        self.data = data

    def on_train_begin(self, logs=None):
        """Starts the run directory and records epoch 0."""
        if (self.directory / "config.json").exists():
            raise ValueError(
                f"{self.directory} already holds a run, which would be "
                "overwritten. Choose another directory, or delete it."
            )
        self._lock = storage.lock_directory(self.directory)
        self._lock.__enter__()
        self.run = Run.create(
            self.directory, self.model, data=self.data, examples=self.examples
        )
        self._predictors = (
            _predictors(self.model) if self.examples is not None else {}
        )
        self.run.record_epoch(self.model, 0, self._accuracy())

    def on_epoch_end(self, epoch, logs=None):
        """Records an epoch; Keras counts from 0, runs from 1."""
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.run.record_epoch(
            self.model, epoch + 1, {"logs": logs, **self._accuracy()}
        )

    def on_train_end(self, logs=None):
        """Lets go of the directory."""
        self._lock.__exit__(None, None, None)

    def _accuracy(self) -> dict[str, Any]:
        accuracy = _accuracies(self._predictors, self.examples)
        return {"accuracy": accuracy} if accuracy else {}
