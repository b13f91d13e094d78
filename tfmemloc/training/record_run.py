"""`RecordRun`: records any `model.fit` into a run directory."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras

from tfmemloc import storage
from tfmemloc.behaviours import Behaviours
from tfmemloc.configs import DataConfig
from tfmemloc.data.examples import Examples
from tfmemloc.runs import Run
from tfmemloc.training.progress import accuracies


class RecordRun(keras.callbacks.Callback):
    """Records any `model.fit` into a run directory.

    Keeps the weights at the beginning and after each epoch and, if `examples`
    are given, the accuracy of every subset. Every probe works on such a run.

    Args:
        directory: of the run; must not hold another one.
        examples: measured after each epoch; ids as in the training.
        data: config of the data, if `tfmemloc.load` loaded them.

    Example:
        >>> record = RecordRun("runs/mine", examples)
        >>> _ = model.fit(inputs, labels, epochs=2, verbose=0,
        ...               callbacks=[record])
        >>> Run.open("runs/mine").epochs
        (0, 1, 2)
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
        if self.examples is not None:
            self._behaviours = Behaviours(self.model)
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
        if self.examples is None:
            return {}
        return {"accuracy": accuracies(self._behaviours, self.examples)}
