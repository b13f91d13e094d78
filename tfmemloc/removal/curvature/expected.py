"""About how long a removal by curvature takes, before it begins."""

from __future__ import annotations

import time

import keras
import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import Predictor, predict_logits
from tfmemloc.removal.curvature.choice import PATH, judged_count
from tfmemloc.removal.curvature.config import CurvatureConfig
from tfmemloc.removal.curvature.rounds import is_held_out

_SAMPLE = 512
# Passes forward that a pass forward and backward is worth; those over all
# examples in a round (curvature, BatchNorm, what is believed); cuts that are
# tried; and what tracing takes.
_BACKWARD, _OVER_ALL, _TRIED, _TRACING = 3, 6, 3 * len(PATH), 5.0


def expected_seconds(
    model: keras.Model, examples: Examples, config: CurvatureConfig
) -> float:
    """From the time of one pass forward; within a factor of two or three.

    Args:
        model: any functional model.
        examples: those that it was trained on.
        config: of the removal.
    """
    train = examples.train
    count = len(train)
    held_out = int(is_held_out(examples).sum())
    tried = _TRIED * judged_count(count, held_out) if config.keep is None else 0
    rounds = config.rounds if config.refit_epochs else 1
    edits = 0 if config.keep == 1.0 else _OVER_ALL * count + tried
    refits = _BACKWARD * config.refit_epochs * count
    passes = rounds * (edits + refits)
    return _TRACING + passes * _seconds_of_one(model, train)


def _seconds_of_one(model: keras.Model, train: Examples) -> float:
    """How long an example takes on its way forward, once that is traced."""
    sample = train.take(np.arange(min(_SAMPLE, len(train))))
    predict = Predictor(model)
    predict_logits(predict, sample)
    started = time.perf_counter()
    predict_logits(predict, sample)
    return (time.perf_counter() - started) / len(sample)
