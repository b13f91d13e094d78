"""`RecordExamples`: records what any `model.fit` sees of each example."""

from __future__ import annotations

import contextlib
import inspect
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.data.examples import Examples
from tfmemloc.training.recorder import ExampleRecorder


class RecordExamples(keras.callbacks.Callback):
    """Records what any `model.fit` sees of each training example.

    The inputs of `fit` must be a dict with `"example_id"`. A functional or
    Sequential model that has no such input is not given it; the `call` of a
    subclassed one gets the whole dict. `Recording.open(directory)` reads the
    recording, `tfmemloc.scores_of_recording` makes scores from it.

    Args:
        directory: of the recording.
        examples: the training examples, so that the recording knows their
            inputs and labels; or their ids alone.
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
        >>> record = RecordExamples("runs/mine/recording", examples.train)
        >>> _ = model.fit(inputs, labels, epochs=2, verbose=0,
        ...               callbacks=[record])
        >>> Recording.open("runs/mine/recording").margin.shape
        (2, 80)
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
