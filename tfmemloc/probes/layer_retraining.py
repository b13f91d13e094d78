"""Layer retraining: do the other layers hold the memory?

Claim (paper, section 4.3): a group is set back to initialization, everything
else is frozen, and the group learns again from the *clean* examples only. If
the accuracy on the noisy examples, which it never saw, comes back, then their
wrong labels are held by the other layers. For most groups it does.

Frozen means frozen: weights, momentum, weight decay and normalization
statistics of the other groups stay as they are, byte for byte. The group's own
BatchNorm is in training mode while it learns; dropout is as in training. (The
authors' code inverts the mask twice, so that it trains on the noisy examples,
and freezes nothing.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from tqdm import auto as tqdm

from tfmemloc import batches, configs, cuts, evaluation, storage, surgery
from tfmemloc.configs import TrainConfig
from tfmemloc.data import Examples
from tfmemloc.results import LayerRetraining
from tfmemloc.runs import Run
from tfmemloc.training import make_optimizer, make_train_step

# The authors' schedule and stopping rule.
AUTHORS_TRAINING = TrainConfig(
    epochs=20,
    learning_rate=0.01,
    schedule="triangle",
    stop_at=1.0,
    patience=3,
)
MEMORY_BUDGET = 2**30


def retrain_layers(
    run: Run,
    examples: Examples,
    *,
    training: TrainConfig = AUTHORS_TRAINING,
    train_on: str = "clean",
    reset_to: int = 0,
    only: Sequence[str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    inference: str | None = None,
    directory: str | os.PathLike | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> LayerRetraining:
    """Retrains each layer group of a run from one subset.

    Args:
        run: any run whose model can be rebuilt.
        examples: the data of the run.
        training: schedule, epochs and stopping rule (`stop_at` is the
            accuracy on the subset that is trained on).
        train_on: the subset that the group sees; `noisy` asks the opposite
            question.
        reset_to: the saved epoch that the group is set back to.
        only: names of the groups to retrain; None takes all.
        groups: names of groups -> names of layers; None is `layer_groups`.
        inference: behaviour of tied layers where accuracy is measured.
        directory: where finished groups are kept; called again, they are not
            retrained. None keeps nothing.
        memory_budget: bytes of prefix activations that are kept.
        progress: show a progress bar.

    Returns:
        Arrays with axes [groups, epochs, subsets].

    Raises:
        ValueError: a group, an epoch or a subset does not exist, the data are
            not the run's, or `directory` holds results of other settings.

    Example:
        >>> result = retrain_layers(Run.open("runs/demo/standard"), examples)
        >>> result.robust_share()
    """
    run.check(examples)
    run.check_epochs([reset_to])
    examples.of_subset(train_on)
    model = run.model(inference=inference)
    found = surgery.layer_groups(model, groups)
    names = _chosen(found, only)
    parts = storage.Parts(
        directory,
        {
            "training": configs.to_json(training),
            "train_on": train_on,
            "reset_to": reset_to,
            "fingerprint": run.fingerprint,
        },
        "retraining",
    )
    reset = run.weights(reset_to)
    curves = []
    with tqdm.tqdm(
        names, desc="retraining", unit="group", disable=not progress
    ) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            part = parts.read(name)
            if part is None:
                learner = Learner(model, found[name], reset, memory_budget)
                curve = learner.learn(examples, training, train_on)
                part = {"accuracy": curve}
                parts.write(name, part)
            curves.append(part["accuracy"])
    longest = training.epochs + 1
    accuracy = np.full((len(names), longest, len(examples.subsets)), np.nan)
    for g, curve in enumerate(curves):
        accuracy[g, : len(curve)] = curve
    return LayerRetraining(
        groups=tuple(names),
        subsets=examples.subsets,
        trained_on=train_on,
        reset_to=reset_to,
        accuracy=accuracy,
        epochs=np.array([len(curve) - 1 for curve in curves]),
        baseline=evaluation.evaluate(model, examples).accuracy,
    )


class Learner:
    """One group of a model, set back, learning behind its frozen prefix."""

    def __init__(self, model, layers, reset, memory_budget):
        self._model = model
        self._own = {id(layer) for layer in layers}
        self._variables = [w for layer in layers for w in layer.weights]
        place = {id(v): n for n, v in enumerate(model.weights)}
        self._reset = [reset[place[id(v)]] for v in self._variables]
        self._cut = cuts.cuts_before(model, {"group": layers})["group"]
        self._memory_budget = memory_budget

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The group is set back, and it alone is trainable.

        The model is as it was when the context ends.
        """
        with (
            _only_trainable(self._model, self._own),
            surgery.swapped_weights(self._variables, self._reset),
        ):
            yield

    def start(self, examples, training, train_on):
        """What an epoch takes, to be called in `alone`.

        Returns:
            (training step, batches of all epochs, the feed).
        """
        suffix = self._cut.suffix
        mine = examples.of_subset(train_on)
        steps = batches.steps_per_epoch(len(mine), training.batch_size)
        optimizer = make_optimizer(training, steps * training.epochs)
        optimizer.build(suffix.trainable_variables)
        feed = _Feed(
            self._model, self._cut, examples, training, self._memory_budget
        )
        dataset = feed.train_batches(mine, steps)
        step = make_train_step(
            suffix,
            optimizer,
            weight_decay=training.weight_decay,
            jit_compile=training.jit_compile,
            batch_spec=dataset.element_spec,
        )
        return step, dataset, feed

    def learn(self, examples, training, train_on) -> np.ndarray:
        """Accuracy after 0, 1, ... epochs: [epochs + 1, S].

        The model has its trained weights again when this returns.
        """
        with self.alone():
            return self._curve(examples, training, train_on)

    def _curve(self, examples, training, train_on) -> np.ndarray:
        suffix = self._cut.suffix
        step, dataset, feed = self.start(examples, training, train_on)
        count = np.sum(examples.subset == train_on)
        steps = batches.steps_per_epoch(count, training.batch_size)
        iterator = iter(dataset)
        curve = [feed.accuracy(suffix)]
        subset = examples.subsets.index(train_on)
        for epoch in range(training.epochs):
            for _ in range(steps):
                loss = step(next(iterator))
            if not np.isfinite(float(loss)):
                raise FloatingPointError(
                    f"The loss is {float(loss)} in epoch {epoch + 1} of the "
                    "retraining. Lower the learning rate."
                )
            curve.append(feed.accuracy(suffix))
            recent = [one[subset] for one in curve[1:][-training.patience :]]
            if (
                training.stop_at is not None
                and len(recent) == training.patience
                and min(recent) >= training.stop_at
            ):
                break
        return np.array(curve)


class _Feed:
    """What the suffix learns from and is measured on.

    The activations before the cut are the same in every epoch, unless the
    images are augmented or a layer before the cut draws at random. Where they
    fit the budget they are computed once.
    """

    def __init__(self, model, cut, examples, training, memory_budget):
        self._examples = examples
        self._training = training
        self._prefix = None
        if cut.place > 0:
            self._prefix = dict(cuts.stages(model, [cut]))[cut.place]
        self._predictor = evaluation.make_predictor(cut.suffix)
        size = 0 if cut.tensor is None else _bytes(cut.tensor, len(examples))
        self.reuses = (
            self._prefix is not None
            and training.augment == "none"
            and not _draws_at_random(self._prefix)
            and 2 * size <= memory_budget
        )
        if not self.reuses:
            self._whole = evaluation.make_predictor(model)
            return
        # In training, tied layers before the cut use the examples' masks.
        self._training_inputs = _outputs(self._prefix, examples, True)
        self._inference_inputs = _outputs(self._prefix, examples, False)

    def train_batches(self, mine: Examples, steps: int) -> tf.data.Dataset:
        """The input of the suffix for each training step."""
        config = self._training
        dataset = batches.make_batches(
            mine,
            config.batch_size,
            seed=config.seed,
            augment=config.augment,
            stop_step=steps * config.epochs,
        )
        if self._prefix is None:
            return dataset
        if not self.reuses:
            return dataset.map(self._through_prefix)
        order = np.argsort(self._examples.example_id)
        ids = tf.constant(self._examples.example_id[order])
        rows = tf.constant(order)
        inputs = self._training_inputs

        def look_up(batch, label):
            place = tf.searchsorted(ids, batch["example_id"])
            image = tf.gather(inputs, tf.gather(rows, place))
            return {"image": image, "example_id": batch["example_id"]}, label

        return dataset.map(look_up)

    def _through_prefix(self, batch, label):
        inputs = evaluation.model_inputs(
            self._prefix, batch["image"], batch["example_id"]
        )
        image = self._prefix(inputs, training=True)
        return {"image": image, "example_id": batch["example_id"]}, label

    def accuracy(self, suffix: keras.Model) -> np.ndarray:
        """Accuracy of each subset now: [S]."""
        if not self.reuses:
            return evaluation.evaluate(self._whole, self._examples).accuracy
        logits = [
            self._predictor(
                self._inference_inputs[start : start + 512],
                tf.constant(self._examples.example_id[start : start + 512]),
            ).numpy()
            for start in range(0, len(self._examples), 512)
        ]
        return evaluation.metrics_of_logits(
            np.concatenate(logits), self._examples
        ).accuracy


@contextlib.contextmanager
def _only_trainable(model: keras.Model, own: set[int]) -> Iterator[None]:
    """Lets only some layers be trainable, and puts all flags back."""
    flags = [(layer, layer.trainable) for layer in surgery.flat_layers(model)]
    try:
        for layer, was_trainable in flags:
            layer.trainable = was_trainable and id(layer) in own
        yield
    finally:
        for layer, was_trainable in flags:
            layer.trainable = was_trainable


def _chosen(found: surgery.Groups, only: Sequence[str] | None) -> list[str]:
    """Names of the groups to retrain."""
    names = list(found) if only is None else list(only)
    unknown = [name for name in names if name not in found]
    if unknown:
        raise ValueError(
            f"There is no group {', '.join(map(repr, unknown))}. Expected "
            f"some of: {', '.join(found)}."
        )
    return [
        name
        for name in names
        if any(layer.trainable_variables for layer in found[name])
    ]


def _draws_at_random(model: keras.Model) -> bool:
    return any(
        isinstance(layer, keras.layers.Dropout)
        or getattr(layer, "seed_generator", None) is not None
        for layer in surgery.flat_layers(model)
    )


def _bytes(tensor: keras.KerasTensor, count: int) -> int:
    return 4 * count * int(np.prod(tensor.shape[1:]))


def _outputs(model, examples: Examples, training: bool) -> tf.Tensor:
    """What comes out of the prefix, for all examples."""

    @tf.function(reduce_retracing=True)
    def forward(image, example_id):
        inputs = evaluation.model_inputs(model, image, example_id)
        return model(inputs, training=training)

    return tf.concat(
        [
            forward(
                tf.constant(
                    batches.scale_pixels(examples.image[start : start + 512])
                ),
                tf.constant(examples.example_id[start : start + 512]),
            )
            for start in range(0, len(examples), 512)
        ],
        axis=0,
    )
