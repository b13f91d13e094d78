"""Retraining: a new network is trained without the examples to forget.

What every other removal is measured against; it costs a whole training.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import keras
import numpy as np

from tfmemloc import storage
from tfmemloc.data.examples import Examples
from tfmemloc.removal.forgetting import removal, split
from tfmemloc.removal.outcome import Removal
from tfmemloc.runs import Run
from tfmemloc.training.loop import train


def retrain_without(
    source: Run,
    examples: Examples,
    *,
    forget: Sequence[int],
    directory: str | os.PathLike | None = None,
    progress: bool = False,
) -> tuple[keras.Model, Removal]:
    """Trains the network of a run anew, as it was trained, without some ids.

    Args:
        source: a run that `train` made.
        examples: its data.
        forget: ids of the training examples to leave out.
        directory: of the new run, which goes on if killed; None keeps nothing.
        progress: show a progress bar.

    Raises:
        ValueError: an id is not a training example's, or the run was not made
            by `train`.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> ids = run.examples().of_subset("noisy").example_id
        >>> model, result = retrain_without(
        ...     run, run.examples(), forget=ids
        ... )
        >>> result.method
        'retraining'
    """
    if not isinstance(source, Run):
        raise TypeError(
            "Expected a Run, which says how its network was trained. Received: "
            f"{type(source).__name__}. `Run.open(directory)` opens one."
        )
    if source.model_config is None or source.training is None:
        raise ValueError(
            f"The run in {source.directory} does not say how its network was "
            "made and trained. Expected a run that `train` or binaries.train "
            "made."
        )
    source.check(examples)
    _, retained = split(examples, forget)
    kept = examples.trained_on(np.asarray(retained.example_id))
    started = time.perf_counter()
    with storage.kept_or_temporary(directory) as folder:
        run = train(
            folder,
            model=source.model_config,
            training=source.training,
            examples=kept,
            progress=progress,
        )
        model = run.model()
    seconds = time.perf_counter() - started
    return model, removal(
        source.model(), model, examples, "retraining", seconds
    )
