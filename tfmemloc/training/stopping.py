"""When a training has learned its examples and may stop early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmemloc import subsets
from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples


def may_stop(
    training: TrainConfig,
    history: Sequence[Mapping[str, Any]],
    examples: Examples,
) -> bool:
    """Whether `stop_at` has been reached for `patience` epochs.

    Args:
        training: of the run.
        history: of the run so far.
        examples: which it was trained on.
    """
    recent = history[-training.patience :]
    if training.stop_at is None or len(recent) < training.patience:
        return False
    return all(
        _train_accuracy(line, examples) >= training.stop_at for line in recent
    )


def _train_accuracy(line: Mapping[str, Any], examples: Examples) -> float:
    """Accuracy on all training examples, memorization units on."""
    accuracy = line["accuracy"].get("tied") or line["accuracy"].get("plain")
    counts = {
        subset: np.sum(examples.subset == subset)
        for subset in subsets.training(examples.subsets)
    }
    right = sum(accuracy[subset] * count for subset, count in counts.items())
    return right / sum(counts.values())
