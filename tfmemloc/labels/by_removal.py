"""Labels judged by a network without its memory, and by how it learned them.

Two things are known of an ordinary network, and neither needs example ids or a
second training. The curvature edit (`tfmemloc.removal.curvature`) takes the
memory out of a copy, which no longer believes most of the wrong labels. And
while the network was trained, it learned wrong labels late: the sum of their
losses over the epochs is large (`csl`). The ranking takes both. Where few
labels are wrong the cut costs more than it finds: then the network as it is
counts more, asked about moved pictures (`tfmemloc.moved`), of which it knows
less by heart. How sure a label is wrong, all other examples say (`left_out`).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.data.examples import Examples, pictures_of, require_examples
from tfmemloc.moved import predict_moved
from tfmemloc.removal.curvature import CurvatureConfig, remove_memory
from tfmemloc.removal.curvature.choice import DEFAULT_KEEP
from tfmemloc.removal.curvature.rounds import is_held_out
from tfmemloc.runs import Run
from tfmemloc.scores.checks import (
    check_classes,
    checked_held_out,
    log_probabilities,
)
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.left_out import predict_left_out
from tfmemloc.scores.of_predictions import values_of
from tfmemloc.scores.of_runs import (
    as_runs,
    check_same_scores,
    mean_scores,
    recorded_scores,
)
from tfmemloc.scores.of_training import margins, scores_of_recording
from tfmemloc.scores.ranking import ranked
from tfmemloc.snapshots import Source, model_of
from tfmemloc.training.recording import Recording


class Edited(NamedTuple):
    """A network as it was trained, without its memory, and how it learned.

    Attributes:
        before: as it was trained.
        after: without its memory.
        recorded: scores of the course of its training; see `course_of`.
    """

    before: keras.Model
    after: keras.Model
    recorded: Mapping[str, np.ndarray]


def is_without_ties(source: Any) -> bool:
    """Whether it is a network without tied layers, or several runs of such."""
    if isinstance(source, list | tuple):
        return bool(source) and all(map(is_without_ties, source))
    model = source.model() if isinstance(source, Run) else source
    return isinstance(model, keras.Model) and not graph.tied_layers(model)


def score_by_removal(
    source: Source | Sequence[Run],
    examples: Examples,
    config: CurvatureConfig | None = None,
    *,
    directory: str | os.PathLike | None = None,
    recording: Recording | None = None,
    progress: bool = False,
) -> ExampleScores:
    """Scores the labels by a copy of a network without its memory.

    Where the course of the training is known, it joins the ranking; see the
    head of this module.

    Args:
        source: a run, or any functional classifier; it is not changed. One
            with tied dropout is dropped instead of edited. Or several runs of
            the same data, which differ in their seed and judge together.
        examples: those it was trained on; held-out ones, with labels as they
            are, choose how much is taken out and calibrate the suspicion.
        config: of the removal; None is the usual one, but of pictures without
            held-out examples a fixed strength: see `_usual`.
        directory: keeps factors and refits, so that a killed job goes on.
        recording: of the training of a model, by `RecordExamples`. That of a
            run is found in its folder.
        progress: show progress bars.

    Returns:
        A row for each training example. The edited network stands for the
        dropped one, the given network for the tied one: `tied_gap` is how much
        less it believes the label without its memory. `moved_margin` is how
        much more the given network believes another class, asked about moved
        pictures; of what is no picture, about itself.

    Raises:
        ValueError: the model has no kernel to edit, or labels are next tokens;
            see `remove_memory`. A recording is of other examples or labels,
            or of a part of the training; of several runs one has none.

    Example:
        >>> scores = score_by_removal(model, examples)
        >>> scores.names[:3]
        ('combined', 'dropped_margin', 'disagreement')
    """
    several = isinstance(source, list | tuple)
    sources = as_runs(source) if several else [source]
    if several and recording is not None:
        raise ValueError(
            "`recording` expected one network. Received: several runs, each of "
            "which has its own in its folder."
        )
    require_examples(examples)
    check_classes(examples.train)
    config = config or _usual(examples)
    networks = [model_of(one, examples) for one in sources]
    # Before the removals, which take longer: they may refuse a recording.
    courses = [
        course_of(one, network, examples, recording)
        for one, network in zip(sources, networks, strict=True)
    ]
    if several:
        check_same_scores(sources, courses)
    edited = []
    for place, one in enumerate(sources):
        folder = directory
        if several and directory is not None:
            folder = pathlib.Path(directory) / str(place)
        before = networks[place]
        if graph.tied_layers(before):
            # Its memory needs no removal.
            before, after = (
                graph.with_inference(before, inference)
                for inference in ("tied", "drop")
            )
        else:
            after, _ = remove_memory(
                one, examples, config, directory=folder, progress=progress
            )
        edited.append(Edited(before, after, courses[place]))
    return scores_of_edited(edited, examples, progress=progress)


def _usual(examples: Examples) -> CurvatureConfig:
    """The removal that is enough to judge labels by.

    What all other examples say is in the ranking already, so that the network
    is refitted on what it believes itself. Of pictures the network as it is
    judges as well: a cut that the others choose ranks no better than a fixed
    one, and takes three times as long.
    """
    if pictures_of(examples) and not is_held_out(examples).any():
        return CurvatureConfig(keep=DEFAULT_KEEP, believe="network")
    return CurvatureConfig(believe="network")


def course_of(
    source: Source,
    network: keras.Model,
    examples: Examples,
    recording: Recording | None = None,
) -> dict[str, np.ndarray]:
    """The scores of the course of a training, as far as it is known.

    Args:
        source: a run, in whose folder the recording is, or a model.
        network: that of the source.
        examples: those it was trained on.
        recording: takes the place of the run's.

    A network with tied dropout has memory for each example from the first
    epochs on: it learns wrong labels about as early as right ones.
    """
    if recording is not None:
        return scores_of_recording(recording, examples.train)
    if isinstance(source, Run) and not graph.tied_layers(network):
        return recorded_scores(source, examples)
    return {}


def scores_of_edited(
    edited: Sequence[Edited], examples: Examples, *, progress: bool = False
) -> ExampleScores:
    """Scores from networks as they were trained, and without their memory.

    Args:
        edited: one, or several that judge together.
        examples: those they were trained on, and others.
        progress: show a progress bar.
    """
    train = examples.train
    check_classes(train)
    others = examples.take(~examples.is_trained_on)
    judges, remembering, held_out, values = [], [], [], []
    for one in edited:
        off, on = (
            predict_moved(network, train) for network in (one.after, one.before)
        )
        # As many classes as the labels have, and finite.
        for name, said in (("dropped", off), ("tied", on)):
            log_probabilities(name, said.mean, train, (2,))
        judges.append(off.mean)
        remembering.append(on.mean)
        if len(others):
            held_out.append(predict_moved(one.after, others).mean)
        values.append(
            values_of(train.label, off.still[np.newaxis], tied=on.still)
            | {"moved_margin": -margins(on.mean, train.label)}
            | one.recorded
        )
    judges, means = np.stack(judges), mean_scores(values)
    known = None
    if held_out:
        pair = np.stack(held_out), others.label
        known = checked_held_out(pair, train, judges)
    return ranked(
        train,
        judges,
        known,
        "auto",
        means,
        None,
        course=means.get("csl"),
        left_out=predict_left_out(train, others, progress=progress),
        remembering=np.stack(remembering) if pictures_of(train) else None,
    )
