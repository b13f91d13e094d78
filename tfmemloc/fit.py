"""Whether a network fits the data that it is said to have been trained on.

A network that was fed other numbers, as pixels from 0 to 255 instead of -1 to
1, is wrong on nearly all of them, and all that is measured of it means nothing.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import keras
import numpy as np

from tfmemloc import losses
from tfmemloc.data.examples import Examples, input_kinds
from tfmemloc.data.kinds import TOKENS
from tfmemloc.data.labels import drawn_ids
from tfmemloc.evaluation import predict_logits

_SAMPLE = 2048
# Standard errors by which it must know more than the most frequent class.
_CLEARLY = 2
_BYTES = "pixels scaled to [-1, 1]"
_TOKENS = "whole numbers as tokens"
_SCALING = (keras.layers.Rescaling, keras.layers.Normalization)


class Fit(NamedTuple):
    """How many of some training labels a network predicts.

    Attributes:
        right: the share, labels as given.
        count: how many were looked at.
        usual: the share of the most frequent class among them.
    """

    right: float
    count: int
    usual: float


def measure_fit(model: keras.Model, examples: Examples) -> Fit:
    """How well a network knows a sample of the training labels.

    Args:
        model: with its memory on, where it has tied layers.
        examples: with classes for labels.
    """
    train = examples.train
    if len(train) > _SAMPLE:
        train = train.of_ids(drawn_ids(train.example_id, _SAMPLE, seed=0))
    right = losses.correct(train.label, predict_logits(model, train))
    usual = np.bincount(train.label).max() / len(train)
    return Fit(float(right.mean()), len(train), float(usual))


def warn_of_misfit(model: keras.Model, examples: Examples) -> None:
    """Warns of a network that knows no more than the most frequent class.

    Warns:
        UserWarning: says how inputs are fed, and what may be wrong.
    """
    if examples.label.ndim > 1:
        return
    fit = measure_fit(model, examples)
    error = np.sqrt(max(fit.usual * (1 - fit.usual), 1e-4) / fit.count)
    if fit.right > fit.usual + _CLEARLY * error:
        return
    remedy = _remedy(model, examples)
    warnings.warn(
        f"Model '{model.name}' predicts {fit.right:.1%} of {fit.count} "
        f"training labels of {examples.name}, where the most frequent class "
        f"alone has {fit.usual:.1%}. Expected the data that it was trained "
        f"on, fed as they were then. Inputs: {how_fed(examples)}.{remedy}",
        stacklevel=3,
    )


def how_fed(examples: Examples) -> str:
    """What a network gets for each input."""
    ways = _ways(examples).items()
    return "; ".join(f"{name}, {way}" for name, way in ways)


def _ways(examples: Examples) -> dict[str, str]:
    """Name of an input -> how it is fed."""
    ways = {}
    for name, kind in input_kinds(examples).items():
        ways[name] = "numbers as they are"
        if kind == TOKENS:
            ways[name] = _TOKENS
        elif examples.inputs[name].dtype == np.uint8:
            ways[name] = _BYTES
    return ways


def _remedy(model: keras.Model, examples: Examples) -> str:
    """What to do if it was fed other numbers."""
    ways = set(_ways(examples).values())
    text = ""
    if _BYTES in ways:
        layers = model._flatten_layers(include_self=False, recursive=True)
        for layer in layers:
            if isinstance(layer, _SCALING):
                text = f" Its layer {layer.name} may expect 0 to 255."
    if ways & {_BYTES, _TOKENS}:
        text += (
            " If it was fed other numbers, pass those as floats, such as "
            "x.astype('float32')."
        )
    return text
