"""Computes the outputs of a model under gates, for many examples at once.

Each function is traced once. Everything runs with `training=False`: BatchNorm
uses its moving statistics, and tied layers do what their `inference` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph, losses, tracing
from tfmemloc.data.chunks import IDS, chunk_at
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import as_logits
from tfmemloc.gradients.streaming import examples_that_fit
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers import masks
from tfmemloc.units.config import SearchConfig
from tfmemloc.units.draws import draw_bystanders, drawn
from tfmemloc.units.gates import UnitGates
from tfmemloc.units.outgoing import OutgoingWeights
from tfmemloc.units.perturbation import check_perturbable, perturbed
from tfmemloc.units.population import term_of

_LARGEST_CHUNK = 256


def is_right(predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[B] bool: a class is the label; of next tokens, all of them are."""
    if label.ndim == 1:
        return predicted == label
    return ((predicted == label) | (label < 0)).all(axis=1)


class GatedModel:
    """A model whose units have gates, with a separate set for each example.

    Args:
        model: functional.
        gates: of its units.
        examples: population and bystanders are drawn from them.
        config: of the search.
    """

    def __init__(
        self,
        model: keras.Model,
        gates: UnitGates,
        examples: Examples,
        config: SearchConfig,
    ):
        self._model = model
        self.gates = gates
        self.config = config
        self._chunk = _chunk_size(model, config)
        if config.perturbations:
            check_perturbable(examples)
        train = examples.train if examples.is_trained_on.any() else examples
        ids = drawn(
            train.example_id, config.population, config.seed, "population"
        )
        self._drawn = train.of_ids(ids)
        self._population = self._stacked(self._drawn)
        self.bystanders = draw_bystanders(examples, config)
        batch = self._specs(examples)
        gate = tf.TensorSpec([None, gates.units], tf.float32)
        self._functions = {
            "own_gradient": tracing.function(
                self._own_gradient_of, input_signature=[*batch, gate]
            ),
            "predicted": tracing.function(
                self._predicted_of, input_signature=[*batch, gate]
            ),
            "losses": tracing.function(
                self._losses_of, input_signature=[*batch, gate, gate]
            ),
            "activity": tracing.function(
                self._activity_of, input_signature=batch
            ),
            "outgoing": tracing.function(
                self._outgoing_of, input_signature=batch
            ),
            "population": tracing.function(
                self._population_gradients, input_signature=[gate]
            ),
            "bystanders": tracing.function(
                self._bystanders_of, input_signature=[*batch, gate]
            ),
        }
        self._fill = self._population_means()
        self._term = term_of(
            config,
            lambda gate: self._functions["population"](
                tf.constant(gate)
            ).numpy(),
            gates.units,
        )

    def trace_count(self) -> int:
        """How often any of the functions was traced."""
        return sum(
            function.experimental_get_tracing_count()
            for function in self._functions.values()
        )

    def open_gates(self, count: int) -> np.ndarray:
        """Gates [N, U] that let everything through."""
        return np.ones((count, self.gates.units), np.float32)

    def predicted(
        self, examples: Examples, gate: np.ndarray | None = None
    ) -> np.ndarray:
        """The class of each example under gates [N, U]: [N] or [N, T]."""
        if gate is None:
            gate = self.open_gates(len(examples))
        (classes,) = self._in_chunks("predicted", examples, gate)
        return classes

    def is_right(
        self, examples: Examples, gate: np.ndarray | None = None
    ) -> np.ndarray:
        """[N] bool: whether the label is predicted under gates [N, U]."""
        return is_right(self.predicted(examples, gate), examples.label)

    def losses(
        self, examples: Examples, gate: np.ndarray, changes: np.ndarray
    ) -> np.ndarray:
        """The loss of each example under each of several changes.

        Args:
            examples: N examples.
            gate: [N, U] that they have.
            changes: [K, U] by which all gates are multiplied in turn.

        Returns:
            [N, K].
        """
        (losses_of,) = self._in_chunks(
            "losses", examples, gate, shared=[changes]
        )
        return losses_of

    def own_gradient(
        self, examples: Examples, gate: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The predicted classes, and d l_i / d gate [N, U]."""
        predicted, own = self._in_chunks("own_gradient", examples, gate)
        return predicted, own

    def population_term(
        self, gate: np.ndarray, example_id: np.ndarray, own: np.ndarray
    ) -> np.ndarray:
        """d mean_j l_j / d gate under each row of gates: [B, U] or [1, U].

        Args:
            gate: [B, U].
            example_id: [B] whose they are.
            own: [B, U] the gradients of their own losses.
        """
        return self._term(gate, example_id, own)

    @functools.cached_property
    def population_squares(self) -> np.ndarray:
        """E_j (d l_j / d gate)^2 of the population, all units on: [U].

        Of the weights at the first call, whatever they become later.
        """
        gate = self.open_gates(len(self._drawn))
        _, own = self.own_gradient(self._drawn, gate)
        return (own.astype(np.float64) ** 2).mean(axis=0)

    def activity(self, examples: Examples) -> np.ndarray:
        """The mean |output| of each unit for each example: [N, U]."""
        (found,) = self._in_chunks("activity", examples)
        return found

    def outgoing(
        self, examples: Examples
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each unit's outgoing weights W and the example's gradient g there.

        Returns:
            <W, g>, |W|^2 and |g|^2, each [N, U]; 0 where a unit's outgoing
            weights are not known.
        """
        dot, weight, gradient = self._in_chunks("outgoing", examples)
        return dot, weight, gradient

    def hashes(self, examples: Examples) -> np.ndarray:
        """Random 32-bit numbers for each example and unit: int64 [N, U]."""
        stream = masks.fold_seed(self.config.seed, "control")
        return masks.hash_bits_numpy(
            stream, examples.example_id, self.gates.units
        ).astype(np.int64)

    def bystanders_right(self, gate: np.ndarray) -> np.ndarray:
        """How right each bystander is under each row of gates: [B, M]."""
        count = len(self.bystanders)
        right = np.zeros((len(gate), count))
        for start in range(0, count, self._chunk):
            rows = np.arange(start, min(start + self._chunk, count))
            batch = self._batch(self.bystanders, rows)
            right[:, rows] = self._functions["bystanders"](*batch, gate).numpy()
        return right

    def _specs(self, examples: Examples) -> list[Any]:
        """Of inputs and labels, any number of them."""
        return list(
            tf.nest.map_structure(
                lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype),
                tuple(self._batch(examples, np.arange(1))),
            )
        )

    def _batch(self, examples: Examples, rows: np.ndarray):
        """Inputs (with the ids beside them) and labels, as tensors."""
        chunk = chunk_at(examples, rows)
        x = arranged(self._model, chunk.inputs)
        return (x, tf.constant(chunk.inputs[IDS])), tf.constant(chunk.label)

    def _in_chunks(
        self,
        name: str,
        examples: Examples,
        *gates: np.ndarray,
        shared: Sequence[np.ndarray] = (),
    ):
        """Calls a function on chunks of examples and joins what it gives.

        A chunk is filled up to a power of two, so that kernels meet few
        shapes, and none meets a batch of one.
        """
        function: Callable = self._functions[name]
        parts = []
        for start in range(0, len(examples), self._chunk):
            stop = min(start + self._chunk, len(examples))
            size = max(8, 1 << (stop - start - 1).bit_length())
            rows = np.minimum(np.arange(start, start + size), stop - 1)
            batch = self._batch(examples, rows)
            values = [*(gate[rows] for gate in gates), *shared]
            given = function(*batch, *map(tf.constant, values))
            parts.append([t.numpy()[: stop - start] for t in given])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _stacked(self, examples: Examples):
        """Inputs, labels and weights of examples in chunks: [C, chunk, ...].

        The weights are those of a mean; what fills the last chunk up weighs 0.
        """
        count = len(examples)
        chunks = -(-count // self._chunk)
        size = -(-count // chunks)
        rows = np.arange(chunks * size)
        weight = np.where(rows < count, 1 / count, 0).astype(np.float32)
        batch = self._batch(examples, np.minimum(rows, count - 1))
        return tf.nest.map_structure(
            lambda t: tf.reshape(t, [chunks, size, *t.shape[1:]]),
            (*batch, tf.constant(weight)),
        )

    # What follows is traced. x is (inputs of the model, ids).

    def _logits(self, x, gate):
        """Logits in float32 under gates [B, U] or [1, U]."""
        with self.gates.applied(gate, self._fill):
            outputs = self._model(x[0], training=False)
        return tf.cast(as_logits(self._model, outputs), tf.float32)

    def _own_gradient_of(self, x, label, gate):
        with tf.GradientTape() as tape:
            tape.watch(gate)
            logits = judged = self._logits(x, gate)
            if self.config.perturbations:
                judged = self._perturbed_logits(x, gate)
            total = tf.reduce_sum(losses.cross_entropy(label, judged))
        return tf.argmax(logits, axis=-1), tape.gradient(total, gate)

    def _predicted_of(self, x, label, gate):
        del label
        return (tf.argmax(self._logits(x, gate), axis=-1),)

    def _losses_of(self, x, label, gate, changes):
        def of_change(change):
            return losses.cross_entropy(label, self._logits(x, gate * change))

        found = tf.map_fn(of_change, changes, parallel_iterations=1)
        return (tf.transpose(found),)

    def _activity_of(self, x, label):
        del label
        return (
            self._unit_outputs(
                x, lambda values: tf.reduce_mean(tf.abs(values), axis=1)
            ),
        )

    def _outgoing_of(self, x, label):
        # Whose outgoing weights are known is found out where it is asked for.
        return OutgoingWeights(self._model, self.gates).of(x, label)

    def _unit_outputs(self, x, measure):
        """A measure of each unit's output [B, P, units], over all units."""
        with self.gates.recorded() as outputs:
            self._model(x[0], training=False)
        return tf.concat(
            [measure(outputs[start]) for start in self.gates.starts], axis=-1
        )

    def _perturbed_logits(self, x, gate):
        """Logits averaged over perturbed copies of each example."""
        copies, ids = self.config.perturbations, x[1]

        def copied(values):
            if not values.dtype.is_floating:
                return tf.repeat(values, copies, axis=0)
            noisy = perturbed(
                values,
                ids,
                copies,
                self.config.perturbation_norm,
                self.config.seed,
            )
            return tf.reshape(noisy, [-1, *values.shape[1:]])

        logits = self._logits(
            tf.nest.map_structure(copied, x), tf.repeat(gate, copies, axis=0)
        )
        logits = tf.reshape(logits, [-1, copies, *logits.shape[1:]])
        return tf.reduce_mean(logits, axis=1)

    def _population_gradients(self, gate):
        """d mean_j l_j / d gate for each row of gates: [B, U]."""

        def of_row(row):
            return self._over_population(lambda *part: of_chunk(row, *part))

        def of_chunk(row, x, label, weight):
            row = row[tf.newaxis]
            with tf.GradientTape() as tape:
                tape.watch(row)
                entropy = losses.cross_entropy(label, self._logits(x, row))
                loss = tf.reduce_sum(weight * entropy)
            return tape.gradient(loss, row)[0]

        return tf.map_fn(of_row, gate, parallel_iterations=1)

    def _over_population(self, function):
        """The sum of what a function gives for the population's chunks."""
        return tf.reduce_sum(
            tf.map_fn(
                lambda part: function(*part),
                self._population,
                fn_output_signature=tf.float32,
                parallel_iterations=1,  # One chunk's activations at a time.
            ),
            axis=0,
        )

    def _bystanders_of(self, x, label, gate):
        """How right bystanders are under each row of gates: [B, M]."""

        def of_row(row):
            logits = self._logits(x, row[tf.newaxis])
            right = tf.argmax(logits, axis=-1) == label
            if label.shape.rank == 1:
                return tf.cast(right, tf.float32)
            counts = tf.cast(label >= 0, tf.float32)
            hits = tf.reduce_sum(tf.cast(right, tf.float32) * counts, axis=1)
            total = tf.reduce_sum(counts, axis=1)
            return hits / tf.maximum(total, 1.0)

        return tf.map_fn(
            of_row,
            gate,
            fn_output_signature=tf.float32,
            parallel_iterations=1,
        )

    def _population_means(self) -> tf.Tensor | None:
        """[U] what a removed unit gives; None is 0."""
        if self.config.removed_value == "zero":
            return None

        def of_chunk(x, label, weight):
            del label
            # Every position of every example counts alike.
            return self._unit_outputs(
                x,
                lambda values: tf.linalg.matvec(
                    tf.reduce_mean(values, axis=1), weight, transpose_a=True
                ),
            )

        means = tracing.function(lambda: self._over_population(of_chunk))()
        return tf.constant(means)


def _chunk_size(model: keras.Model, config: SearchConfig) -> int:
    """Examples at a time: forward, gated and backward activations of each."""
    each = 3 * graph.activation_bytes(model) * max(1, config.perturbations)
    fits = examples_that_fit(each, config.memory_budget_mib * 2**20)
    # A power of two, as chunks are filled up to one.
    return min(_LARGEST_CHUNK, 1 << (fits.bit_length() - 1))
