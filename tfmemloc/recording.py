"""What each training step saw of each example, epoch by epoch.

A training step has the logits of its examples in its hands anyway. Kept by
example id, they tell how the network came to know each of them: when it was
learned, how often forgotten, with what margin. The table is updated in the
graph, so that nothing leaves the device before the end of an epoch, and is
written as one compressed file for each epoch.

The numbers are those of the training step: BatchNorm in training mode, the
example's own memorization units on, augmented pixels, before the weights move.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import inspect
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import graph, storage
from tfmemloc.data import Examples, places_of
from tfmemloc.results import Result

_MEASURES = ("margin", "loss", "error")
_COLUMNS = (*_MEASURES, "label")
# Keeps the logarithm of a probability of 0 finite.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True, eq=False)
class Recording(Result):
    """What training steps saw of N examples in E epochs; NaN: not seen."""

    epochs: tuple[int, ...]  # E, counted from 1.
    example_id: np.ndarray  # [N], rising; or in the order given to `of`.
    label: np.ndarray  # [N] that was trained on; -1 where never seen.
    margin: np.ndarray  # [E, N] the label's logit less the best other one.
    loss: np.ndarray  # [E, N] cross-entropy in nats.
    error: np.ndarray  # [E, N] || softmax - one-hot ||.
    pixels: str = ""  # Checksum of the images; empty where it was not kept.

    @classmethod
    def open(cls, directory: str | os.PathLike) -> Recording:
        """Reads what `RecordExamples`, `train` or `ExampleRecorder` kept.

        Args:
            directory: of the recording; of a run that `train` made, its
                folder `recording`.

        Raises:
            FileNotFoundError: nothing was recorded there.
            DamagedFileError: a file was truncated or altered.
            ValueError: an example had different labels in different epochs.
        """
        directory = pathlib.Path(directory)
        epochs = recorded_epochs(directory)
        if not epochs:
            raise FileNotFoundError(
                f"{directory} holds no recorded epoch. Expected a folder "
                "that `RecordExamples` wrote, or `recording` in the directory "
                "of a run that tfmemloc trained."
            )
        found = [
            storage.read_arrays(storage.epoch_path(directory, epoch))
            for epoch in epochs
        ]
        try:
            seen = np.stack([part["label"] for part in found])
            known = np.isfinite(seen)
            last = len(epochs) - 1 - known[::-1].argmax(axis=0)
            label = seen[last, np.arange(seen.shape[1])]
            moved = (known & (seen != label)).any(axis=0)
            if moved.any():
                ids = found[0]["example_id"][moved]
                raise _MovedLabelsError(
                    f"{directory} holds epochs that were trained on different "
                    f"labels of {moved.sum()} examples, for instance id "
                    f"{ids[:5].tolist()}. Expected one training; delete the "
                    "folder and train again."
                )
            return cls(
                epochs=epochs,
                example_id=found[0]["example_id"],
                label=np.where(np.isfinite(label), label, -1).astype(np.int64),
                **{
                    name: np.stack([part[name] for part in found])
                    for name in _MEASURES
                },
                pixels=_kept_pixels(directory),
            )
        except _MovedLabelsError:
            raise
        except (KeyError, ValueError) as error:
            raise storage.DamagedFileError(
                f"{directory} does not hold the epochs of one recording: "
                f"{error}. Delete it and train again."
            ) from error

    @property
    def correct(self) -> np.ndarray:
        """[E, N] bool, whether the label was the prediction."""
        return self.margin > 0

    def of(self, examples: Examples) -> Recording:
        """The recording of these examples, in their order.

        Raises:
            ValueError: it is of other examples, labels or images, or an
                example was never seen. Images are compared where they were
                announced (`RecordExamples(directory, examples)`) and all of
                them are given.
        """
        order, missing = places_of(self.example_id, examples.example_id)
        if missing.any():
            raise ValueError(
                f"The recording has no example with id "
                f"{examples.example_id[missing][:5].tolist()} of "
                f"{examples.name}. Expected the examples of the training."
            )
        unseen = ~np.isfinite(self.margin[:, order]).any(axis=0)
        if unseen.any():
            raise ValueError(
                f"{unseen.sum()} examples were seen in none of the "
                f"{len(self.epochs)} recorded epochs, for instance id "
                f"{examples.example_id[unseen][:5].tolist()}. Expected each "
                "of them in at least one; score only those that were trained "
                "on."
            )
        other = self.label[order] != examples.label
        if other.any():
            raise ValueError(
                f"The recording is of other labels than those of "
                f"{examples.name}: {other.sum()} differ, for instance of id "
                f"{examples.example_id[other][:5].tolist()}. Use the labels "
                "of the training."
            )
        is_whole = len(examples) == len(self.example_id)
        if self.pixels and is_whole and self.pixels != _pixels(examples):
            raise ValueError(
                f"The recording is of other images than those of "
                f"{examples.name}, with the same ids and labels. Use the "
                "images of the training."
            )
        return dataclasses.replace(
            self,
            example_id=self.example_id[order],
            label=self.label[order],
            **{name: getattr(self, name)[:, order] for name in _MEASURES},
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each epoch: over all examples that it saw."""
        return [
            {
                "epoch": epoch,
                "seen": int(np.isfinite(self.margin[e]).sum()),
                "accuracy": float(
                    self.correct[e][np.isfinite(self.margin[e])].mean()
                ),
                "margin": float(np.nanmean(self.margin[e])),
                "loss": float(np.nanmean(self.loss[e])),
            }
            for e, epoch in enumerate(self.epochs)
        ]


class _MovedLabelsError(ValueError):
    """An example had different labels in different epochs."""


def _pixels(examples: Examples) -> str:
    """The checksum of the training images."""
    return examples.fingerprint()["train"]["image"]


def _kept_pixels(directory: pathlib.Path) -> str:
    """The checksum of the images that were announced, or an empty string."""
    path = directory / "settings.json"
    return storage.read_json(path).get("images", "") if path.exists() else ""


def recorded_epochs(directory: str | os.PathLike) -> tuple[int, ...]:
    """The epochs of the recording in a folder; () where there is none."""
    return storage.epochs_in(directory) if os.path.isdir(directory) else ()


class ExampleRecorder:
    """The table behind a recording, for training loops of one's own.

    Args:
        directory: of the recording; one that was begun for the same examples
            is gone on with.
        examples: the training examples (of a whole data set, its training
            part), so that the recording knows their images and labels; or
            their ids alone, [N], in any order.
        from_logits: outputs are logits; else probabilities.

    Raises:
        ValueError: ids are not unique integers, or the folder holds a
            recording of other examples.

    Example:
        >>> recorder = ExampleRecorder("runs/mine/recording", ids)
        >>> @tf.function
        ... def step(x, y, example_id):
        ...     with tf.GradientTape() as tape:
        ...         logits = model(x, training=True)
        ...     recorder.update(example_id, y, logits)
        >>> recorder.end_epoch(1)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        examples: Examples | Sequence[int] | np.ndarray,
        *,
        from_logits: bool = True,
    ):
        known = {}
        if isinstance(examples, Examples):
            found = examples.fingerprint()["train"]
            known = {"labels": found["label"], "images": found["image"]}
            examples = examples.train.example_id
        ids = np.asarray(examples)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(
                "Example ids: expected a list of integers, one for each "
                f"training example. Received: shape {ids.shape}, dtype "
                f"{ids.dtype}."
            )
        self.example_id = np.sort(ids.astype(np.int64))
        if (np.diff(self.example_id) == 0).any():
            raise ValueError(
                "Example ids: expected each but once. Received: some twice."
            )
        self.directory = pathlib.Path(directory)
        self._from_logits = from_logits
        self._parts = storage.Parts(
            directory,
            {
                "examples": len(ids),
                "example_id": storage.digest([self.example_id]),
                **known,
            },
            "recording",
        )
        self._ids = tf.constant(self.example_id)
        # The last rows are for ids that nobody announced, and for labels that
        # are no class.
        self._nothing = np.full(
            (len(ids) + 2, len(_COLUMNS)), np.nan, np.float32
        )
        # One table for all replicas, which see different examples. In a
        # strategy's scope a variable would be one for each; scopes are of the
        # thread, and this one has none.
        with concurrent.futures.ThreadPoolExecutor(1) as outside:
            self._table = outside.submit(
                tf.Variable, self._nothing, trainable=False
            ).result()

    def update(self, example_ids, labels, outputs) -> None:
        """Notes a batch; to be called in the training step, in the graph.

        Args:
            example_ids: [batch] integers.
            labels: [batch] or [batch, 1] class numbers, or [batch, classes]
                one-hot.
            outputs: [batch, classes] of the network.
        """
        logits = tf.cast(outputs, tf.float32)
        if not self._from_logits:
            # Log-probabilities are logits up to a constant, which cancels.
            logits = tf.math.log(tf.maximum(logits, _TINY))
        label = _class_numbers(labels, logits)
        values = _values(logits, label)
        ids = tf.reshape(tf.cast(example_ids, tf.int64), [-1])
        place = tf.searchsorted(self._ids, ids)
        count = len(self.example_id)
        found = tf.gather(self._ids, tf.minimum(place, count - 1))
        place = tf.where(found == ids, place, count)
        is_class = (label >= 0) & (label < logits.shape[1])
        place = tf.where(is_class, place, count + 1)
        self._table.scatter_nd_update(place[:, tf.newaxis], values)

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs that are written, counted from 1."""
        return recorded_epochs(self.directory)

    def begin_epoch(self, epoch: int) -> None:
        """Empties the table; an epoch written before, from here on, goes.

        Args:
            epoch: counted from 1. Of a training that goes on, the first one
                that it takes again.
        """
        self._table.assign(self._nothing)
        for later in self.epochs:
            if later >= epoch:
                storage.epoch_path(self.directory, later).unlink()

    def end_epoch(self, epoch: int) -> None:
        """Writes the epoch, counted from 1, and makes room for the next.

        Raises:
            ValueError: an id came that was not announced, a label that is no
                class, an output that is not finite, or nothing at all.
        """
        values = self._table.numpy()
        self._table.assign(self._nothing)
        if not np.isnan(values[-1]).all():
            raise ValueError(
                f"Epoch {epoch} had labels that are no class. Expected "
                "integers from 0 to the number of outputs less one, or one-hot "
                "rows."
            )
        if not np.isnan(values[-2]).all():
            raise ValueError(
                f"Epoch {epoch} had example ids that are not among the "
                f"{len(self.example_id)} that were announced. Expected the "
                "ids of all training examples."
            )
        if not np.isfinite(values).any():
            raise ValueError(
                f"Nothing was recorded in epoch {epoch}. Expected `update` to "
                "be called in each step. The callback cannot record a model "
                "whose own train_step does not call compute_loss; let that "
                "step call `ExampleRecorder.update` itself."
            )
        seen = np.isfinite(values[:-2, _COLUMNS.index("label")])
        broken = seen & ~np.isfinite(values[:-2]).all(axis=1)
        if broken.any():
            raise ValueError(
                f"Epoch {epoch} had outputs that are not finite, of "
                f"{broken.sum()} examples, for instance id "
                f"{self.example_id[broken][:5].tolist()}: the training "
                "diverged. Lower the learning rate, or look for bad pixels."
            )
        self._parts.write(
            storage.epoch_path(self.directory, epoch).stem,
            {
                "example_id": self.example_id,
                **{name: values[:-2, k] for k, name in enumerate(_COLUMNS)},
            },
        )


class RecordExamples(keras.callbacks.Callback):
    """Records what anybody's `model.fit` sees of each training example.

    The inputs of `fit` are a dict with `"example_id"`. A functional or
    Sequential model that has no such input is not given it; the `call` of a
    subclassed one gets the whole dict. `Recording.open(directory)` reads what
    was kept, `tfmemloc.scores_of_recording` makes scores of it.

    Args:
        directory: of the recording.
        examples: the training examples, so that the recording knows their
            images and labels; or their ids alone.
        from_logits: whether the model's outputs are logits; None asks the
            loss that it was compiled with.

    Raises:
        ValueError: when `fit` begins (ids are not unique integers, the folder
            holds a recording and `initial_epoch` is 0, or the loss does not
            say what outputs it takes), in its first step (inputs without
            `example_id`, outputs that are not one for each class), or at the
            end of an epoch (ids that were not announced, labels that are no
            class, outputs that are not finite, or nothing was recorded). The
            model is then as it was before.

    Example:
        >>> inputs = {"image": x_train, "example_id": ids}
        >>> model.fit(inputs, y_train, epochs=10,
        ...           callbacks=[RecordExamples("runs/mine/recording", ids)])
        >>> Recording.open("runs/mine/recording").margin.shape
        (10, 60000)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        examples: Examples | Sequence[int] | np.ndarray,
        *,
        from_logits: bool | None = None,
    ):
        super().__init__()
        self.directory = pathlib.Path(directory)
        self._examples = examples
        self._from_logits = from_logits

    def on_train_begin(self, logs=None):
        """Taps the training step."""
        from_logits = self._from_logits
        if from_logits is None:
            from_logits = _takes_logits(self.model.loss)
        self.recorder = ExampleRecorder(
            self.directory, self._examples, from_logits=from_logits
        )
        _tap(self.model, self.recorder)

    def on_epoch_begin(self, epoch, logs=None):
        """Makes room; Keras counts epochs from 0, recordings from 1."""
        if epoch == 0 and self.recorder.epochs:
            _untap(self.model)
            raise ValueError(
                f"{self.directory} already holds a recording, which would be "
                "overwritten. Choose another directory, delete it, or go on "
                "with fit(..., initial_epoch=...)."
            )
        self.recorder.begin_epoch(epoch + 1)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the epoch."""
        with _untapped_on_error(self.model):
            self.recorder.end_epoch(epoch + 1)

    def on_train_end(self, logs=None):
        """Leaves the model as it was."""
        _untap(self.model)


def _takes_logits(loss) -> bool:
    """Whether a loss says that it takes logits; a name takes probabilities."""
    if isinstance(loss, list | tuple | dict) and len(loss) == 1:
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    if isinstance(loss, str):
        return False
    if not hasattr(loss, "from_logits"):
        raise ValueError(
            f"The loss {loss!r} does not say whether it takes logits or "
            "probabilities. Pass from_logits=True or False."
        )
    return bool(loss.from_logits)


def _tap(model: keras.Model, recorder: ExampleRecorder) -> None:
    """Lets the recorder see ids, labels and outputs of each training step.

    `train_step` knows the ids and `compute_loss`, which it calls, the outputs.
    Both are wrapped on this one model and traced anew.
    """
    _untap(model)
    train_step, compute_loss = model.train_step, model.compute_loss
    knows_training = "training" in inspect.signature(compute_loss).parameters
    # Each replica of a strategy is traced in a thread of its own.
    step = threading.local()
    was_traced: list[bool] = []

    def tapped_step(data):
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        if was_traced and not _has_ids(x):
            # Of a later `fit` without ids, after this one was interrupted.
            return train_step(data)
        with _untapped_on_error(model):
            x, step.ids = _without_ids(model, x)
            was_traced.append(True)
            try:
                return train_step(
                    keras.utils.pack_x_y_sample_weight(x, y, weight)
                )
            finally:
                # A step that never asked for them leaves none behind.
                step.ids = None

    def tapped_loss(
        x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        ids, step.ids = getattr(step, "ids", None), None
        # Without ids it is a validation step, or one of the model's own.
        if ids is not None:
            recorder.update(ids, y, y_pred)
        more = {"training": training} if knows_training else {}
        return compute_loss(x, y, y_pred, sample_weight, **more)

    model.train_step, model.compute_loss = tapped_step, tapped_loss
    model.make_train_function(force=True)


@contextlib.contextmanager
def _untapped_on_error(model: keras.Model) -> Iterator[None]:
    """Leaves the model as it was where something goes wrong."""
    try:
        yield
    except Exception:
        _untap(model)
        raise


def _untap(model: keras.Model) -> None:
    for name in ("train_step", "compute_loss"):
        if name in vars(model):
            delattr(model, name)
    model.train_function = None


def _has_ids(x) -> bool:
    return isinstance(x, dict) and graph.IDS in x


def _without_ids(model: keras.Model, x):
    """The inputs that the model takes, and the ids."""
    if not _has_ids(x):
        raise ValueError(
            "Expected the inputs of `fit` to be a dict with "
            f'"{graph.IDS}", such as {{"image": x, "{graph.IDS}": ids}}; '
            "`tfmemloc.attach_ids(dataset)` makes them. Received: "
            f"{sorted(x) if isinstance(x, dict) else type(x).__name__}."
        )
    ids = x[graph.IDS]
    count = 1
    if graph.is_functional(model):
        inputs = keras.tree.flatten(graph.inputs_of(model))
        if any(tensor.name == graph.IDS for tensor in inputs):
            return x, ids
        count = len(inputs)
    elif not isinstance(model, keras.Sequential):
        return x, ids
    x = {name: value for name, value in x.items() if name != graph.IDS}
    if len(x) == 1 == count:
        (x,) = x.values()
    return x, ids


def _class_numbers(labels, logits):
    """[batch] int64 from class numbers or one-hot rows."""
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 2 and labels.shape[1] != 1:
        labels = tf.argmax(labels, axis=1)
    if logits.shape.rank != 2 or (logits.shape[1] or 0) < 2:
        raise ValueError(
            "Expected a network with outputs [batch, classes], one for each "
            f"of two or more classes. Received: shape {logits.shape}."
        )
    return tf.cast(tf.reshape(labels, [-1]), tf.int64)


def _values(logits, label):
    """[batch, columns]: margin, loss, error and label."""
    mine = tf.one_hot(label, logits.shape[1], True, False)
    own = tf.reduce_sum(tf.where(mine, logits, 0.0), axis=1)
    others = tf.where(mine, logits.dtype.min, logits)
    log_p = tf.nn.log_softmax(logits)
    loss = -tf.reduce_sum(tf.where(mine, log_p, 0.0), axis=1)
    wrong = tf.exp(log_p) - tf.cast(mine, tf.float32)
    return tf.stack(
        [
            own - tf.reduce_max(others, axis=1),
            loss,
            tf.norm(wrong, axis=1),
            tf.cast(label, tf.float32),
        ],
        axis=1,
    )
