"""The table behind a recording, updated inside of the training step."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfmemloc import storage
from tfmemloc.checks import as_array
from tfmemloc.data.examples import Examples
from tfmemloc.layers.tied_dropout import MEMORY_OFF
from tfmemloc.losses import Array
from tfmemloc.training import tables
from tfmemloc.training.recording import MEASURES, recorded_epochs

_COLUMNS = (*MEASURES, "label")

# Keeps the logarithm of a probability of 0 finite.
_TINY = 1e-30


class ExampleRecorder:
    """The table behind a recording, for training loops of one's own.

    Args:
        directory: of the recording; an earlier recording of the same examples
            is continued. None writes nothing, as is right for all workers but
            one.
        examples: the training examples (of a whole data set, its training
            part), so that the recording knows their inputs and labels; or
            their ids alone, [N], in any order.
        from_logits: outputs are logits; else probabilities.

    Raises:
        ValueError: ids are not unique integers, or the folder holds a
            recording of other examples.

    Example:
        >>> recorder = ExampleRecorder("recording", [5, 7])
        >>> @tf.function
        ... def step(example_id, y, logits):
        ...     recorder.update(example_id, y, logits)
        >>> step(tf.constant([7, 5]), tf.constant([0, 1]), tf.eye(2))
        >>> recorder.end_epoch(1)
        >>> recorder.epochs
        (1,)
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        examples: Examples | Sequence[int] | np.ndarray,
        *,
        from_logits: bool = True,
    ):
        known = {}
        if isinstance(examples, Examples):
            known = {
                "labels": examples.fingerprint()["train"]["label"],
                # Called so since version 1; they are the inputs.
                "images": examples.inputs_digest(),
            }
            examples = examples.train.example_id
        ids = as_array(examples)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(
                "Example ids: expected a list of integers, one for each "
                f"training example. Received: shape {ids.shape}, dtype "
                f"{ids.dtype}."
            )
        self.example_id = np.sort(ids.astype(np.int64))
        if (np.diff(self.example_id) == 0).any():
            raise ValueError(
                "Example ids: expected each only once. Received: some twice."
            )
        self.directory = None if directory is None else pathlib.Path(directory)
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
        # The last rows are for ids that nobody announced, for labels that are
        # no class, and for examples that pass without their memory, of which
        # nothing is noted.
        self._nothing = np.full(
            (len(ids) + 3, len(_COLUMNS)), np.nan, np.float32
        )
        self._table = tables.shared_variable(self._nothing)
        self._seen = tables.shared_variable(np.zeros(len(ids) + 3, np.int64))

    def update(self, example_ids: Array, labels: Array, outputs: Array) -> None:
        """Notes a batch; to be called in the training step, in the graph.

        Args:
            example_ids: [batch] integers.
            labels: [batch] or [batch, 1] class numbers, [batch, classes]
                one-hot, or [batch, time] next tokens.
            outputs: [batch, classes] of the network, or [batch, time,
                vocabulary].
        """
        logits = tf.cast(outputs, tf.float32)
        if not self._from_logits:
            # Log-probabilities are logits up to a constant, which cancels.
            logits = tf.math.log(tf.maximum(logits, _TINY))
        label, is_class = _class_numbers(labels, logits)
        ids = tf.reshape(tf.cast(example_ids, tf.int64), [-1])
        ids, is_class, values = tables.of_all_workers(
            ids, is_class, _values(logits, label)
        )
        place = tables.row_of(self._ids, ids)
        count = len(self.example_id)
        place = tf.where(is_class, place, count + 1)
        place = tf.where(ids == MEMORY_OFF, count + 2, place)
        place = place[:, tf.newaxis]
        self._table.scatter_nd_update(place, values)
        self._seen.scatter_nd_add(place, tf.ones_like(ids))

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs that are written, counted from 1."""
        return () if self.directory is None else recorded_epochs(self.directory)

    def begin_epoch(self, epoch: int) -> None:
        """Empties the table, and deletes the written epochs from this one on.

        Args:
            epoch: counted from 1. If a training is resumed, the first epoch
                that it repeats.
        """
        self._table.assign(self._nothing)
        self._seen.assign(tf.zeros_like(self._seen))
        for later in self.epochs:
            if later >= epoch:
                storage.epoch_path(self.directory, later).unlink()

    def end_epoch(self, epoch: int) -> None:
        """Writes the epoch, counted from 1, and makes room for the next.

        Raises:
            ValueError: an id came that was not announced, a label that is no
                class, an output that is not finite, or nothing at all.
        """
        values, times = self._table.numpy()[:-1], self._seen.numpy()[:-3]
        self._table.assign(self._nothing)
        self._seen.assign(tf.zeros_like(self._seen))
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
                "diverged. Lower the learning rate, or look for bad inputs."
            )
        self._warn_of_repeats(epoch, times)
        self._parts.write(
            storage.epoch_path(self.directory or "", epoch).stem,
            {
                "example_id": self.example_id,
                **{name: values[:-2, k] for k, name in enumerate(_COLUMNS)},
            },
        )

    def _warn_of_repeats(self, epoch: int, times: np.ndarray) -> None:
        """Warns where one id came for what must be several examples."""
        # Where a data set is repeated and shuffled, twice may be by chance.
        repeated = times > 2
        if repeated.any() and (times == 0).any():
            first = int(np.argmax(times))
            warnings.warn(
                f"In epoch {epoch} the example id {self.example_id[first]} "
                f"came {times[first]} times, and {np.sum(times == 0)} of the "
                f"{len(times)} announced ids did not come. Expected an id of "
                "its own for each example, attached before any shuffling.",
                stacklevel=2,
            )


def _class_numbers(labels, logits):
    """[batch] int64 of class numbers or one-hot rows, or [batch, time].

    With it, [batch] bool: whether it is a class. Rows with several labels are
    none.
    """
    labels = tf.convert_to_tensor(labels)
    rank = logits.shape.rank
    if rank not in (2, 3) or (logits.shape[-1] or 0) < 2:
        raise ValueError(
            "Expected a network with outputs [batch, classes], or [batch, "
            "time, vocabulary], one for each of two or more classes. "
            f"Received: shape {logits.shape}."
        )
    if rank == 3:
        label = tf.cast(labels, tf.int64)
        return label, tf.reduce_all(label < logits.shape[-1], axis=1)
    if labels.shape.rank == 2 and labels.shape[1] != 1:
        ones = tf.cast(labels == 1, tf.int32)
        is_one_hot = (tf.reduce_sum(ones, axis=1) == 1) & (
            tf.math.count_nonzero(labels, axis=1, dtype=tf.int32) == 1
        )
        label = tf.argmax(labels, axis=1)
        return label, is_one_hot
    label = tf.cast(tf.reshape(labels, [-1]), tf.int64)
    return label, (label >= 0) & (label < logits.shape[1])


def _values(logits, label):
    """[batch, columns]: margin, loss, error and label.

    Of next tokens: means over the positions that count, and 0 as the label.
    """
    mine = tf.one_hot(label, logits.shape[-1], True, False)
    own = tf.reduce_sum(tf.where(mine, logits, 0.0), axis=-1)
    others = tf.where(mine, logits.dtype.min, logits)
    log_p = tf.nn.log_softmax(logits)
    loss = -tf.reduce_sum(tf.where(mine, log_p, 0.0), axis=-1)
    wrong = tf.exp(log_p) - tf.cast(mine, tf.float32)
    columns = [
        own - tf.reduce_max(others, axis=-1),
        loss,
        tf.norm(wrong, axis=-1),
        tf.cast(label, tf.float32),
    ]
    if label.shape.rank == 2:
        weight = tf.cast(label >= 0, tf.float32)
        total = tf.maximum(tf.reduce_sum(weight, axis=1), 1.0)
        columns = [
            tf.reduce_sum(column * weight, axis=1) / total
            for column in columns[:-1]
        ]
        columns.append(tf.zeros_like(total))
    return tf.stack(columns, axis=1)
