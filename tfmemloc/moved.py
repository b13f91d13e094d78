"""What a network says of pictures that are moved by a little.

A label that was memorized is tied to the very pixels that it came with; what
many pictures have in common is not. So the mean prediction over a picture and
the same one moved towards its four corners, by a 28th of its sides, has
forgotten much of what the network knows of single pictures, and is no worse on
new ones. Pixels that come in at an edge repeat it.

The mean is that of log-probabilities. Inputs that are no pictures stay as they
are; where there is none, the prediction is the network's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import losses
from tfmemloc.data.chunks import chunks
from tfmemloc.data.examples import Examples, pictures_of, require_some
from tfmemloc.evaluation import Predictor

_SHARE = 1 / 28  # Of a side: two pixels of 56, a third of one of eight.
# Those to the sides as well give the same ranking of labels.
_MOVES = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_CHUNK = 512


class Moved(NamedTuple):
    """Predictions of pictures.

    Attributes:
        still: log-probabilities [N, classes] of the pictures as they are.
        mean: the same over all moves.
    """

    still: np.ndarray
    mean: np.ndarray


class MovedPredictor:
    """A function from inputs to log-probabilities, traced once.

    Args:
        model: any Keras classifier.
        examples: like those that it will get; they say what is a picture.
    """

    def __init__(self, model: keras.Model, examples: Examples):
        self._predict = Predictor(model)
        self._pictures = pictures_of(examples)

    def __call__(self, inputs: Mapping[str, Any]) -> Moved:
        """Of inputs by name [B, ...]; ids under `example_id`."""
        still = self._said(inputs)
        if not self._pictures:
            return Moved(still, still)
        pictures = {
            name: tf.convert_to_tensor(inputs[name]) for name in self._pictures
        }
        total = still + sum(
            self._said(
                {**inputs}
                | {name: moved(x, *move) for name, x in pictures.items()}
            )
            for move in _MOVES
        )
        return Moved(still, losses.log_softmax(total / (1 + len(_MOVES))))

    def trace_count(self) -> int:
        """How often it was traced."""
        return self._predict.trace_count()

    def _said(self, inputs) -> np.ndarray:
        return losses.log_softmax(self._predict(inputs).numpy())


def predict_moved(model: keras.Model, examples: Examples) -> Moved:
    """What a network says of pictures, and of the same ones moved a little.

    Args:
        model: any Keras classifier.
        examples: N examples.

    Raises:
        ValueError: there are none.

    Example:
        >>> found = predict_moved(model, examples.test)
        >>> found.still.shape, found.mean.shape
        ((40, 10), (40, 10))
    """
    require_some(examples)
    predict = MovedPredictor(model, examples)
    parts = [predict(chunk.inputs) for chunk in chunks(examples, _CHUNK)]
    return Moved(*map(np.concatenate, zip(*parts, strict=True)))


def moved(image: tf.Tensor, down: int, right: int) -> tf.Tensor:
    """Pictures moved by a 28th of their height and width.

    Args:
        image: floats [B, height, width, channels].
        down: 1, 0 or -1.
        right: likewise.
    """
    return _along(_along(image, down, axis=1), right, axis=2)


def _along(image: tf.Tensor, direction: int, axis: int) -> tf.Tensor:
    """Moved along one axis, between pixels by linear interpolation."""
    if not direction:
        return image
    size = image.shape[axis]
    whole, part = divmod(_SHARE * size, 1)
    places = np.arange(size)
    near, far = (
        tf.gather(
            image,
            np.clip(places - direction * (int(whole) + more), 0, size - 1),
            axis=axis,
        )
        for more in (0, 1)
    )
    return (1 - part) * near + part * far
