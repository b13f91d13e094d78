"""Takes the memory out of a network that is already trained.

Claim: what a network shares between examples lies in directions of its kernels
along which the loss of many examples curves; what it memorized of single ones
lies in the others (2510.24256). One pass over the training examples measures
the curvature (`tfmemloc.gradients.curvature`); the directions that few examples
use are cut (`bases`); how much of which kernels is chosen on the given labels
of examples held out, or by what all other examples say (`choice`); and a few
epochs on the examples that the edited network believes mend what was cut too
much (`refit`). Then the same once more. No example ids, no second training, no
true labels.

Beyond the reference: convolutions, the choice by the gap, BatchNorm
recalibrated, rounds of edit and refit.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
import warnings

import keras
import numpy as np

from tfmemloc.data.batches import check_augmentable
from tfmemloc.data.examples import Examples
from tfmemloc.fit import warn_of_misfit
from tfmemloc.removal.copies import check_examples, own_copy
from tfmemloc.removal.curvature.checks import (
    check_labels,
    protected_examples,
    warn_of_lost_classes,
)
from tfmemloc.removal.curvature.choice import Choice
from tfmemloc.removal.curvature.config import CurvatureConfig
from tfmemloc.removal.curvature.others import said_by_others, share_wrong
from tfmemloc.removal.curvature.result import (
    CurvatureEdit,
    EditRound,
    details,
)
from tfmemloc.removal.curvature.rounds import HELD_OUT, Job, is_held_out
from tfmemloc.removal.outcome import compared
from tfmemloc.snapshots import Source, model_of

# A network that predicts so many held-out labels may have been trained on them,
# where clearly more are wrong than it gets wrong.
_MANY, _CLEARLY = 0.98, 3


def remove_memory(
    source: Source,
    examples: Examples,
    config: CurvatureConfig = CurvatureConfig(),
    *,
    directory: str | os.PathLike | None = None,
    progress: bool = False,
) -> tuple[keras.Model, CurvatureEdit]:
    """Takes memory out of a trained network by the curvature of its loss.

    Args:
        source: a run, or a functional Keras model; it is not changed.
        examples: those that it was trained on, with their labels as given,
            and, better, a subset `heldout` or `validation` of others, which it
            was not trained on, to choose by.
        config: how.
        directory: keeps factors and refits, so that a killed job goes on and
            another `keep` needs no other pass; None keeps nothing.
        progress: show progress bars.

    Returns:
        The edited network, and what was done; its seconds are those of this
        call, without what was read back from the directory.

    Raises:
        ValueError: no kernel can be edited, a layer or a group to protect is
            not known, there are no training examples, or no pictures to
            augment, or the directory has refits of other settings.

    Warns:
        UserWarning: the network knows no more of the labels than which class
            is the most frequent, so that it was not trained on these examples
            as they are fed; the held-out examples look as if it had been
            trained on them; or a rare class is lost.

    Example:
        >>> edited, result = remove_memory(
        ...     model, examples, CurvatureConfig(keep=0.9, refit_epochs=0)
        ... )
        >>> [row["stage"] for row in result.rows()]
        ['before', 'after']
    """
    original = model_of(source, examples)
    check_examples(original, examples)
    check_augmentable(examples, config.augment)  # Before what takes long.
    warn_of_misfit(original, examples)
    started = time.perf_counter()
    model, trained = own_copy(original), examples
    job = Job(
        examples,
        config,
        None if directory is None else pathlib.Path(directory),
        protected_examples(examples, config.protect),
        _asked_others(examples, config, progress),
        progress,
    )
    done: list[EditRound] = []
    for number in range(config.rounds if config.refit_epochs else 1):
        model, part = job.edited(model, trained, number)
        if number == 0 and job.judge_name == "heldout":
            _warn_of_seen(examples, part.choice, config.seed)
        if config.refit_epochs:
            trained = job.refitted(model, number)
            part = dataclasses.replace(part, believed=len(trained.train))
        done.append(part)
    seconds = time.perf_counter() - started
    fields, by_class = compared(original, model, examples)
    if by_class is not None:
        counts = np.bincount(examples.train.label, minlength=examples.classes)
        warn_of_lost_classes(model.name, by_class, counts)
    return model, CurvatureEdit(
        method="curvature",
        seconds=seconds,
        **fields,
        **details(done),
        judge=job.judge_name,
        believe=job.believe if config.refit_epochs else "",
    )


def _warn_of_seen(examples: Examples, choice: Choice, seed: int) -> None:
    """Says so if the held-out examples look as if they were trained on.

    A network knows as many labels of those as of others only where hardly any
    are wrong.
    """
    before = choice.points[0]
    is_alike = before.heldout >= before.train - before.error
    if examples.label.ndim > 1 or not is_alike or before.heldout < _MANY:
        return
    wrong = share_wrong(examples, seed)
    if wrong < 1 - before.heldout + _CLEARLY * before.error:
        return
    warnings.warn(
        f"The network predicts {before.heldout:.1%} of the held-out labels of "
        f"{examples.name}, as many as of those that it was trained on, though "
        f"all other examples find {wrong:.1%} of the labels wrong. Expected "
        f"{' or '.join(HELD_OUT)} for examples that were never trained on; "
        "these seem to have been, and cannot say how much to cut. Where there "
        "are none, all other examples choose.",
        stacklevel=3,
    )


def _asked_others(
    examples: Examples, config: CurvatureConfig, progress: bool
) -> np.ndarray | None:
    """What all other examples say, where anybody wants to know it."""
    if config.believe == "all":
        check_labels(examples)
    if examples.label.ndim > 1:
        return None
    believes = config.believe != "network" and bool(config.refit_epochs)
    judges = config.keep is None and not is_held_out(examples).any()
    if believes or judges:
        return said_by_others(examples, config.seed, progress=progress)
    return None
