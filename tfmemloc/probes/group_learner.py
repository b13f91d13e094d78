"""Retrains one layer group while all other layers are frozen.

The layers before the group (its *front*) give the same activations in every
epoch, unless the inputs are augmented or a layer of the front is random. The
activations are computed only once if they fit the memory budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import data, evaluation, graph, tracing
from tfmemloc.configs import TrainConfig
from tfmemloc.data.chunks import IDS, chunks
from tfmemloc.data.examples import Examples
from tfmemloc.graph.inputs import arranged
from tfmemloc.training import make_optimizer, make_train_step

_CHUNK = 512


class GroupLearner:
    """Resets one group of a model and retrains it behind its frozen front.

    Args:
        model: comes back with the weights that it had.
        layers: of the group.
        reset: the weights that the group is set back to, in the order of
            `model.weights`.
        memory_budget: bytes of activations that are kept.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Sequence[keras.layers.Layer],
        reset: Sequence[np.ndarray],
        memory_budget: int,
    ):
        self._model = model
        self._own = {id(layer) for layer in layers}
        self._variables = [w for layer in layers for w in layer.weights]
        place = {id(v): n for n, v in enumerate(model.weights)}
        self._reset = [reset[place[id(v)]] for v in self._variables]
        self._cut = graph.cuts_before(model, {"group": layers})["group"]
        self._memory_budget = memory_budget

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The group is set back, and it alone is trainable.

        The model is as it was when the context ends.
        """
        with (
            _only_trainable(self._model, self._own),
            graph.swapped_weights(self._variables, self._reset),
        ):
            yield

    def start(self, examples: Examples, training: TrainConfig, train_on: str):
        """Prepares the retraining; to be called within `alone`.

        Returns:
            (training step, batches of all epochs, the feed).
        """
        suffix = self._cut.suffix
        subset = examples.of_subset(train_on)
        steps = data.steps_per_epoch(len(subset), training.batch_size)
        optimizer = make_optimizer(training, steps * training.epochs)
        optimizer.build(suffix.trainable_variables)
        feed = GroupFeed(
            self._model, self._cut, examples, training, self._memory_budget
        )
        dataset = feed.train_batches(subset, steps)
        step = make_train_step(
            suffix,
            optimizer,
            weight_decay=training.weight_decay,
            jit_compile=training.jit_compile,
            batch_spec=dataset.element_spec,
        )
        return step, dataset, feed

    def learn(
        self, examples: Examples, training: TrainConfig, train_on: str
    ) -> np.ndarray:
        """Accuracy after 0, 1, ... epochs: [epochs + 1, S].

        The model has its trained weights again when this returns.
        """
        with self.alone():
            return self._curve(examples, training, train_on)

    def _curve(self, examples, training, train_on) -> np.ndarray:
        step, dataset, feed = self.start(examples, training, train_on)
        count = np.sum(examples.subset == train_on)
        steps = data.steps_per_epoch(count, training.batch_size)
        iterator = iter(dataset)
        curve = [feed.accuracy()]
        subset = examples.subsets.index(train_on)
        for epoch in range(training.epochs):
            for _ in range(steps):
                loss = step(next(iterator))
            if not np.isfinite(float(loss)):
                raise FloatingPointError(
                    f"The loss is {float(loss)} in epoch {epoch + 1} of the "
                    "retraining. Lower the learning rate."
                )
            curve.append(feed.accuracy())
            recent = [one[subset] for one in curve[1:][-training.patience :]]
            if (
                training.stop_at is not None
                and len(recent) == training.patience
                and min(recent) >= training.stop_at
            ):
                break
        return np.array(curve)


class GroupFeed:
    """What the group learns from and is measured on.

    Args:
        model: the whole network.
        cut: in front of the group.
        examples: all of them.
        training: of the group.
        memory_budget: bytes of activations that are kept.
    """

    def __init__(self, model, cut, examples, training, memory_budget):
        self._examples = examples
        self._training = training
        self._front = None
        if cut.place > 0:
            self._front = dict(graph.stages(model, [cut]))[cut.place]
        size = 0 if cut.tensor is None else _bytes(cut.tensor, len(examples))
        self.reuses = (
            self._front is not None
            and training.augment == "none"
            and not _draws_at_random(self._front)
            and 2 * size <= memory_budget
        )
        if not self.reuses:
            self._predictor = evaluation.Predictor(model)
            return
        self._predictor = evaluation.Predictor(cut.suffix)
        # In training, tied layers of the front use the examples' masks.
        self._training_inputs = _outputs(self._front, examples, True)
        self._inference_inputs = _outputs(self._front, examples, False)

    def train_batches(self, subset: Examples, steps: int) -> tf.data.Dataset:
        """The input of the group for each training step."""
        config = self._training
        dataset = data.make_batches(
            subset,
            config.batch_size,
            seed=config.seed,
            augment=config.augment,
            stop_step=steps * config.epochs,
        )
        if self._front is None:
            return dataset
        if not self.reuses:
            return dataset.map(self._through_front)
        order = np.argsort(self._examples.example_id)
        ids = tf.constant(self._examples.example_id[order])
        rows = tf.constant(order)
        inputs = self._training_inputs

        def look_up(batch, label):
            place = tf.searchsorted(ids, batch[IDS])
            x = tf.gather(inputs, tf.gather(rows, place))
            return {"x": x, IDS: batch[IDS]}, label

        return dataset.map(look_up)

    def _through_front(self, batch, label):
        x = self._front(arranged(self._front, batch), training=True)
        return {"x": x, IDS: batch[IDS]}, label

    def accuracy(self) -> np.ndarray:
        """Accuracy of each subset now: [S]."""
        if not self.reuses:
            return evaluation.evaluate(self._predictor, self._examples).accuracy
        parts = []
        for start in range(0, len(self._examples), _CHUNK):
            places = np.arange(start, min(start + _CHUNK, len(self._examples)))
            x = self._inference_inputs[start : start + _CHUNK]
            inputs = {"x": x, IDS: self._examples.example_id[places]}
            logits = self._predictor(inputs).numpy()
            parts.append(evaluation.measured(logits, self._examples, places))
        return evaluation.joined_metrics(parts, self._examples).accuracy


@contextlib.contextmanager
def _only_trainable(model: keras.Model, own: set[int]) -> Iterator[None]:
    """Lets only some layers be trainable, and puts all flags back."""
    flags = [(layer, layer.trainable) for layer in graph.flat_layers(model)]
    try:
        for layer, was_trainable in flags:
            layer.trainable = was_trainable and id(layer) in own
        yield
    finally:
        for layer, was_trainable in flags:
            layer.trainable = was_trainable


def _draws_at_random(model: keras.Model) -> bool:
    return any(
        isinstance(layer, keras.layers.Dropout)
        or getattr(layer, "seed_generator", None) is not None
        for layer in graph.flat_layers(model)
    )


def _bytes(tensor: keras.KerasTensor, count: int) -> int:
    return 4 * count * int(np.prod([size or 1 for size in tensor.shape[1:]]))


def _outputs(model, examples: Examples, training: bool) -> tf.Tensor:
    """What comes out of the front, for all examples."""

    @tracing.function(reduce_retracing=True)
    def forward(inputs):
        return model(inputs, training=training)

    return tf.concat(
        [
            forward(arranged(model, chunk.inputs))
            for chunk in chunks(examples, _CHUNK)
        ],
        axis=0,
    )
