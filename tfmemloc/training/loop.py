"""Training that repeats, resumes, and reports on every subset.

The paper's protocol (section 3, appendix): SGD with momentum and weight decay,
cross-entropy, linear warm-up and cosine, or a triangle. One `tf.function` with
one trace takes every step, the short last batch of an epoch included.

The same command gives the same bytes: the order of the examples is a function
of (seed, step), and after each epoch everything that the next one needs is
written down, so that a killed run goes on as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import data, graph, storage
from tfmemloc.behaviours import Behaviours
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.data.sources import load
from tfmemloc.data.text import warn_of_repeats
from tfmemloc.models import build_network
from tfmemloc.runs import Run, check_finite, variable_arrays
from tfmemloc.training import by_example, early, rules, workers
from tfmemloc.training.optimizer import make_optimizer, make_rate
from tfmemloc.training.progress import (
    accuracies,
    progress_words,
    sampled,
    summary_writer,
    write_summary,
)
from tfmemloc.training.recorder import ExampleRecorder
from tfmemloc.training.rules import Rule
from tfmemloc.training.step import make_train_step
from tfmemloc.training.stopping import may_stop


class TrainingDivergedError(FloatingPointError):
    """The loss became NaN or infinite."""


def train(
    directory: str | os.PathLike,
    *,
    data: DataConfig | None = None,
    model: ModelConfig | keras.Model | None = None,
    training: TrainConfig | None = None,
    examples: Examples | None = None,
    rule: Rule | None = None,
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
        model: which network; or a functional Keras model of your own with its
            initial weights, which is trained in place. Its outputs are logits,
            or it ends in a softmax.
        training: how to train it.
        examples: the data, where they are the caller's own or loaded already.
        rule: a rule of your own, in the place of `training.rule`; see
            `tfmemloc.training.rules`.
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
        >>> run = train("runs/mine", model=ModelConfig(width=0.125),
        ...             training=TrainConfig(epochs=1, batch_size=128))
        >>> sorted(run.history[-1]["accuracy"])
        ['drop', 'tied']
    """
    is_own = isinstance(model, keras.Model)
    model_config = None if is_own else model or ModelConfig()
    training = training or TrainConfig()
    if rule is not None:
        training = dataclasses.replace(training, rule=rules.address_of(rule))
    if examples is None:
        data = data or DataConfig()
        examples = load(data, download=download)
    if examples.classes < 2:
        raise ValueError(
            f"{examples.name} has {examples.classes} class. Expected two or "
            "more: with one, there is nothing to learn."
        )
    strategy = strategy or tf.distribute.get_strategy()
    workers.check(strategy)
    workers.check_batches(strategy, len(examples.train), training.batch_size)
    with workers.in_turn(strategy, directory) as in_turn:
        with strategy.scope():
            network = (
                model
                if is_own
                else build_network(
                    model_config,
                    examples,
                    training,
                    synchronized=strategy.num_replicas_in_sync > 1,
                )
            )
            # Before anything is written: it may refuse the network.
            if graph.tied_layers(network):
                warn_of_repeats(examples)
            if rule is None:
                rule = rules.named(
                    training.rule, network, examples.train, training
                )
                _check_statistics(network, rule, training)
            early.check(rule, examples, training)
        run = in_turn(
            lambda: Run.create(
                directory,
                network,
                data=data,
                model_config=model_config,
                training=training,
                examples=examples,
                # Where its early part ends depends on the last epoch.
                may_grow=not hasattr(rule, "early"),
            )
        )
        if start_from is not None:
            start_from.load_weights(network)
        if is_own or start_from is not None:
            _check_start(run, network)
        loop = _Loop(run, network, examples, training, strategy, rule)
        loop.run_epochs(progress, tensorboard, on_epoch_end)
    return run


def _check_statistics(network, rule, training: TrainConfig) -> None:
    """Refuses BatchNorm statistics of the drop that nothing would follow."""
    if not graph.keeps_own_statistics(network):
        return
    if not getattr(rule, "passes_without_memory", False):
        raise ValueError(
            "The network keeps BatchNorm statistics of its own for the drop, "
            "from examples that pass with their memory off, and this training "
            "has none. Expected a rule that lets some, such as "
            f'"drop_pass_gate", and memory_off above 0. Received: '
            f"rule={training.rule!r}, memory_off={training.memory_off}."
        )


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
            "Start from the weights of its epoch 0, or use another directory."
        )


class _Loop:
    """The state of one training: network, optimizer, epoch."""

    def __init__(self, run, network, examples, training, strategy, rule):
        self.run = run
        self.network = network
        self.examples = examples
        self.training = training
        self.strategy = strategy
        # Of several workers one writes and measures.
        self.is_first = workers.is_first(strategy)
        self.rule = rule
        self.train_examples = examples.train
        self.steps = data.steps_per_epoch(
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
        writer = summary_writer(self.run, tensorboard and self.is_first)
        epoch = self._restore()
        if self._is_over(epoch):
            return
        self.recorder = ExampleRecorder(
            self.run.directory / "recording" if self.is_first else None,
            self.train_examples,
        )
        self.recorder.begin_epoch(epoch + 1)
        behaviours = Behaviours(self.network)
        dataset = workers.share_batches(
            self.strategy,
            functools.partial(self._batches, epoch * self.steps),
        )
        train_step = make_train_step(
            self.network,
            self.optimizer,
            rule=self.rule,
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
            disable=not (progress and self.is_first),
            mininterval=0.5,
        ) as bar:
            while not self._is_over(epoch):
                started = time.perf_counter()
                with by_example.epoch_of(self.rule, self.run.directory, epoch):
                    loss = self._train_epoch(train_step, iterator, epoch, bar)
                epoch += 1
                ended = early.look(
                    self.rule, self.examples, epoch * self.steps, self.strategy
                )
                if not self.is_first:
                    self.recorder.end_epoch(epoch)
                    continue
                line = self._describe(epoch, loss, behaviours, started)
                if ended:
                    line["early_part_ended"] = True
                self._save(epoch, line)
                write_summary(writer, line)
                bar.set_postfix_str(progress_words(line))
                if on_epoch_end is not None:
                    on_epoch_end(self.run, epoch)

    def _batches(self, start: int, share: tuple[int, int]) -> tf.data.Dataset:
        """A worker's share of the batches from a step on."""
        return data.make_batches(
            self.train_examples,
            self.training.batch_size,
            seed=self.training.seed,
            augment=self.training.augment,
            start_step=start,
            stop_step=self.training.epochs * self.steps,
            share=share,
        )

    def _is_over(self, epoch: int) -> bool:
        """Whether to stop before the next epoch: as the first worker says."""
        return workers.first_says(
            self.strategy,
            lambda: epoch >= self.training.epochs or self._may_stop(),
        )

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
                "Lower the learning rate, or look for bad numbers in the data."
            )
        return loss

    def _describe(self, epoch, loss, behaviours, started) -> dict[str, Any]:
        """The history line of an epoch that was just trained."""
        line = {
            "epoch": epoch,
            "step": epoch * self.steps,
            "loss": loss,
            # Of the last step that was taken, not of the next one.
            "learning_rate": float(self.rate(epoch * self.steps - 1)),
        }
        if self._is_due(epoch, self.training.evaluate_every):
            measured, parts = self._measured(epoch)
            line["accuracy"] = accuracies(behaviours, measured)
            if parts:
                line["sampled"] = parts
        line["seconds"] = round(time.perf_counter() - started, 3)
        return line

    def _measured(self, epoch: int) -> tuple[Examples, dict[str, int]]:
        """The examples whose accuracy is measured; see `sampled`."""
        training = self.training
        is_whole = epoch == training.epochs or training.stop_at is not None
        return (self.examples, {}) if is_whole else self._sample

    @functools.cached_property
    def _sample(self) -> tuple[Examples, dict[str, int]]:
        return sampled(self.examples, self.training.evaluate_examples)

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
        return [
            *self.network.variables,
            *self.optimizer.variables,
            *getattr(self.rule, "variables", []),
        ]

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
        if self.is_first:
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
