"""A few epochs on the examples that an edited network believes.

An edit takes some of what is common to the examples along with the memory. The
edited network is trained on for a few epochs, only on the examples whose label
as given it predicts itself: most wrong labels are not among them any more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

import keras
import numpy as np

from tfmemloc import losses
from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import predict_logits
from tfmemloc.training.loop import train


def believed(model: keras.Model, examples: Examples) -> Examples:
    """The training examples whose label the model predicts, and all others.

    Of next tokens, the positions that it does not predict do not count.

    Raises:
        ValueError: it predicts none.
    """
    train_examples = examples.train
    logits = predict_logits(model, train_examples)
    if train_examples.label.ndim > 1:
        is_right = logits.argmax(axis=-1) == train_examples.label
        label = np.where(is_right, train_examples.label, -1)
        return dataclasses.replace(train_examples, label=label)
    is_right = losses.correct(train_examples.label, logits) == 1
    if not is_right.any():
        raise ValueError(
            f"Model '{model.name}' predicts no training label of "
            f"{examples.name} any more: too much was cut. Expected a larger "
            "`keep`, or fewer layers."
        )
    return examples.trained_on(train_examples.example_id[is_right])


def refit(
    model: keras.Model,
    examples: Examples,
    training: TrainConfig,
    directory: str | os.PathLike | None = None,
    *,
    progress: bool = False,
) -> None:
    """Trains a model on these examples, in place.

    Args:
        model: functional; its weights change.
        examples: the believed ones; see `believed`.
        training: how.
        directory: of the run, from which a killed one goes on; None keeps
            nothing.
        progress: show a progress bar.
    """
    with _folder(directory) as folder:
        run = train(
            folder,
            model=model,
            examples=examples.train,
            training=training,
            progress=progress,
        )
        # A finished run is only opened.
        run.load_weights(model)


@contextlib.contextmanager
def _folder(directory) -> Iterator[pathlib.Path]:
    if directory is not None:
        yield pathlib.Path(directory)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)
