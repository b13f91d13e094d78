"""A few epochs on the examples that an edited network believes.

An edit takes some of what is common to the examples along with the memory. The
edited network is trained on for a few epochs, only on the examples whose label
as given it predicts itself: most wrong labels are not among them any more. It
has seen these labels, though, and what it has learned of a wrong one helps it
to predict it. What all other examples say (`others`) has not: where both are
asked, their probabilities are multiplied.
"""

from __future__ import annotations

import dataclasses
import os

import keras
import numpy as np

from tfmemloc import configs, losses, shares, storage
from tfmemloc.configs import TrainConfig
from tfmemloc.data.chunks import chunks, even_count
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import Predictor
from tfmemloc.training.loop import train

_CHUNK = 512


def believed(
    model: keras.Model,
    examples: Examples,
    also: np.ndarray,
    others: np.ndarray | None = None,
) -> Examples:
    """The training examples whose label the model predicts, and all others.

    Of next tokens, the positions that it does not predict do not count.

    Args:
        model: the edited one.
        examples: all.
        also: ids of training examples that are believed whatever it predicts.
        others: log-probabilities [N, classes] that count as much as the
            model's; see `others`.

    Raises:
        ValueError: it predicts none.
    """
    train_examples = examples.train

    def right(only) -> dict[str, np.ndarray]:
        predict = Predictor(model)
        found = chunks(train_examples, _CHUNK, even=True, only=only)
        return {
            str(number): said(predict(chunk.inputs).numpy(), chunk.places)
            == chunk.label
            for number, chunk in zip(only, found, strict=True)
        }

    def said(logits, places) -> np.ndarray:
        if others is not None:
            logits = losses.log_softmax(logits) + others[places]
        return logits.argmax(axis=-1)

    count = even_count(len(train_examples), _CHUNK)
    parts = shares.together(
        "believed",
        lambda: [
            storage.digest(model.get_weights()),
            train_examples.digest(),
            None if others is None else storage.digest([others]),
        ],
        count,
        right,
    )
    is_right = np.concatenate([parts[str(k)] for k in range(count)])
    if not is_right.any():
        raise ValueError(
            f"Model '{model.name}' predicts no training label of "
            f"{examples.name} any more: too much was cut. Expected a larger "
            "`keep`, or fewer layers."
        )
    is_right[np.isin(train_examples.example_id, also)] = True
    if train_examples.label.ndim == 1:
        return examples.trained_on(train_examples.example_id[is_right])
    label = examples.label.copy()
    label[examples.is_trained_on] = np.where(is_right, train_examples.label, -1)
    left = train_examples.example_id[is_right.any(axis=1)]
    return dataclasses.replace(examples, label=label).trained_on(left)


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

    def trained() -> dict[str, np.ndarray]:
        with storage.kept_or_temporary(directory) as folder:
            run = train(
                folder,
                model=model,
                examples=examples.train,
                training=training,
                progress=progress,
            )
            # A finished run is only opened.
            weights = run.weights()
        return {str(k): value for k, value in enumerate(weights)}

    found = shares.once(
        "refit",
        lambda: [
            storage.digest(model.get_weights()),
            examples.train.digest(),
            configs.to_json(training),
        ],
        trained,
    )
    model.set_weights([found[str(k)] for k in range(len(found))])
