"""Second-split forgetting: how soon an example is forgotten.

A network that has learned an example goes on to learn others (Maini, Garg,
Lipton and Kolter, "Characterizing Datapoints via Second-Split Forgetting",
2022); the sooner it forgets the example, the more suspicious its label.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from tfmemloc import evaluation
from tfmemloc.configs import ModelConfig, TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.layers import masks
from tfmemloc.runs import Run
from tfmemloc.scores.checks import check_classes
from tfmemloc.scores.memorization import as_trained
from tfmemloc.training.loop import train


def second_split_times(
    directory: str | os.PathLike,
    examples: Examples,
    *,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """After how many epochs on other examples each one is forgotten for good.

    The training examples are split into halves by (seed, id). A network learns
    one half and then goes on to learn the other. The time of an example of the
    first half is the first epoch after which its prediction is never right
    again. Then the halves change places, so that every example gets a time.

    Args:
        directory: of the four runs; killed, the same call goes on.
        examples: N training examples and the test ones.
        model: which network; the default is ResNet-9 without dropout.
        training: of both phases.
        seed: of the split.
        progress: show progress bars.

    Returns:
        [N] epochs, in the order of `examples.train`: 0 where the example was
        right neither at the end of the first phase nor after any epoch of the
        second, `epochs + 1` where it was right at the end. Small is
        suspicious.

    Raises:
        ValueError: the directory holds runs with other settings or data, or
            labels are next tokens.
        DirectoryInUseError: another process trains there.

    Example:
        >>> times = second_split_times(
        ...     "second_split",
        ...     examples,
        ...     model=ModelConfig(width=0.125, dropout="none"),
        ...     training=TrainConfig(epochs=1, batch_size=40),
        ...     progress=False,
        ... )
        >>> times.shape
        (80,)
    """
    model = model or ModelConfig(dropout="none")
    training = dataclasses.replace(training or TrainConfig(), save_every=1)
    part = examples.train
    check_classes(part)
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, "split"), part.example_id, 1
    )
    side = bits[:, 0] & 1
    times = np.zeros(len(part))
    for first in (0, 1):
        folder = pathlib.Path(directory) / f"split_{first}"
        mine, others = (
            examples.trained_on(part.example_id[side == half])
            for half in (first, 1 - first)
        )
        learned = train(
            folder / "first",
            examples=mine,
            model=model,
            training=training,
            progress=progress,
        )
        went_on = train(
            folder / "second",
            examples=others,
            model=model,
            # Times are comparable only where all second phases are as long.
            training=dataclasses.replace(training, stop_at=None),
            start_from=learned,
            progress=progress,
        )
        times[side == first] = _forgotten(went_on, mine.train)
    return times


def _forgotten(run: Run, part: Examples) -> np.ndarray:
    """The first epoch of a run after which each example stays wrong."""
    model = as_trained(run)
    predict = evaluation.Predictor(model)
    right = []
    for epoch in run.epochs:
        run.load_weights(model, epoch)
        logits = evaluation.predict_logits(predict, part)
        right.append(logits.argmax(axis=1) == part.label)
    right = np.stack(right)
    # One more than the last epoch after which it was right; 0 if never.
    last = len(right) - right[::-1].argmax(axis=0)
    return np.where(right.any(axis=0), last, 0)
