"""The paper's learning-rate schedules, and the optimizer of a config."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfmemloc.configs import TrainConfig

_WARMUP = 0.1

_TRIANGLE_PEAK = 0.4


@keras.saving.register_keras_serializable(package="tfmemloc")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """The paper's learning-rate schedules, per step.

    The rate of a step is the curve's value in the middle of that step, so that
    neither the first nor the last step is wasted on a rate of 0.

    Args:
        peak: the highest rate.
        schedule: `warmup_cosine`, `triangle` or `constant`.
        total_steps: steps of the whole training.
    """

    def __init__(self, peak: float, schedule: str, total_steps: int):
        self.peak = peak
        self.schedule = schedule
        self.total_steps = total_steps

    def __call__(self, step):
        """The rate of a step, a float32 scalar."""
        done = (tf.cast(step, tf.float32) + 0.5) / self.total_steps
        if self.schedule == "constant":
            return tf.constant(self.peak, tf.float32)
        if self.schedule == "triangle":
            rise, fall = (
                done / _TRIANGLE_PEAK,
                (1 - done) / (1 - _TRIANGLE_PEAK),
            )
            return self.peak * tf.minimum(rise, fall)
        cosine = 0.5 + 0.5 * tf.cos(
            math.pi * tf.maximum(0.0, done - _WARMUP) / (1 - _WARMUP)
        )
        return self.peak * tf.minimum(done / _WARMUP, cosine)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this schedule anew."""
        return {
            "peak": self.peak,
            "schedule": self.schedule,
            "total_steps": self.total_steps,
        }


def make_rate(training: TrainConfig, total_steps: int) -> LearningRate:
    """The learning rate of a config, by step."""
    return LearningRate(training.learning_rate, training.schedule, total_steps)


def make_optimizer(
    training: TrainConfig, total_steps: int
) -> keras.optimizers.Optimizer:
    """The optimizer of a config; weight decay is left to the loss."""
    rate = make_rate(training, total_steps)
    if training.optimizer == "adam":
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=training.momentum)
    if training.dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
