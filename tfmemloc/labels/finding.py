"""Finds wrong labels by whatever network there is.

A network with tied dropout says what it knows without its memory: its dropped
predictions judge the labels (`tfmemloc.scores`). Any other trained network is
asked after the memory was taken out of a copy of it: the curvature edit
(`tfmemloc.removal.curvature`) needs no example ids and no second training, and
the edited network no longer believes most of the wrong labels.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import predict_logits
from tfmemloc.labels.review import write_review
from tfmemloc.removal.curvature import CurvatureConfig, remove_memory
from tfmemloc.runs import Run
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.of_predictions import scores_of_judges
from tfmemloc.scores.of_runs import (
    ScoreConfig,
    recorded_scores,
    score_examples,
)
from tfmemloc.scores.of_training import scores_of_recording
from tfmemloc.scores.suspects import check_examples, write_suspects
from tfmemloc.snapshots import Source, model_of
from tfmemloc.training.recording import Recording


def find_label_errors(
    source: Run | Sequence[Run] | keras.Model | ExampleScores,
    examples: Examples,
    directory: str | os.PathLike,
    config: ScoreConfig | CurvatureConfig | None = None,
    *,
    shown: int | None = None,
    **options: Any,
) -> ExampleScores:
    """Ranks the training examples by how suspicious their labels are.

    Args:
        source: a run with tied dropout, or several of the same data that
            differ in their seed; a run or a model without it, from which the
            memory is taken in a copy (`score_by_removal`); or scores that were
            made before.
        examples: the data of the run, or of the scores.
        directory: where `example_scores.npz` and `.json`, `suspects.csv` (all
            training examples, the most suspicious first), `suspects.html`
            (pictures, texts or rows), `review.html` (a page to decide on) and
            `suspects.json` (how well each score finds the labels that are
            known to be wrong) are written; and `work`, what a removal keeps
            to go on where it was killed.
        config: what is scored, or how the memory is taken out.
        shown: number of examples on the pages, suspects or not, the most
            suspicious first; None shows the first suspects.
        **options: of `score_examples` or `score_by_removal`.

    Returns:
        The scores. A *suspect* is an example for which, without its memory
        and after adjustment to the class shares, another label than the given
        one is the most probable.

    Raises:
        ValueError: the scores are of other examples; see `score_examples`.
        TypeError: the source is none of these, the config is of another kind
            of source, or there are options for scores that were made before.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> scores = find_label_errors(run, run.examples(), "suspects")
        >>> sorted(os.listdir("suspects"))[-1]
        'suspects.json'
    """
    scores = _scores(source, examples, directory, config, options)
    check_examples(scores, examples)
    write_review(directory, scores, examples, shown)
    write_suspects(directory, scores, examples, shown)
    return scores


def _scores(source, examples, directory, config, options) -> ExampleScores:
    """The scores of any source."""
    if isinstance(source, ExampleScores):
        if options or config:
            raise TypeError(
                "Scores that were made before expected no config and no "
                "options. Received: ExampleScores, options "
                f"{sorted(options)}, config {config}."
            )
        return source
    if _is_without_ties(source):
        _check_config(source, config, CurvatureConfig)
        return score_by_removal(
            source,
            examples,
            config or CurvatureConfig(),
            directory=pathlib.Path(directory) / "work",
            **options,
        )
    if isinstance(source, Run) or (
        isinstance(source, list | tuple)
        and all(isinstance(each, Run) for each in source)
    ):
        _check_config(source, config, ScoreConfig)
        return score_examples(
            source, examples, config or ScoreConfig(), **options
        )
    raise TypeError(
        "Expected a run, several runs, a Keras model, or scores. Received: "
        f"{type(source).__name__}, options {sorted(options)}. "
        "`scores_of_logits` makes scores from any predictions."
    )


def _is_without_ties(source: Any) -> bool:
    """Whether it is one network without tied layers."""
    if isinstance(source, Run):
        return not graph.tied_layers(source.model())
    return isinstance(source, keras.Model)


def _check_config(source, config, wanted: type) -> None:
    if config is not None and not isinstance(config, wanted):
        raise TypeError(
            f"For this source, a {type(source).__name__}, `config` expected a "
            f"{wanted.__name__}. Received: {type(config).__name__}."
        )


def score_by_removal(
    source: Source,
    examples: Examples,
    config: CurvatureConfig = CurvatureConfig(),
    *,
    directory: str | os.PathLike | None = None,
    recording: Recording | None = None,
    progress: bool = False,
) -> ExampleScores:
    """Scores the labels by a copy of a network without its memory.

    Where the course of the training is known, it has its say: labels that were
    learned late, or never, are suspected by the sum of their losses over the
    epochs (`csl`), which counts twice as much as the edited network.

    Args:
        source: a run, or any functional classifier; it is not changed.
        examples: those it was trained on; held-out ones, with labels as they
            are, choose how much is taken out and calibrate the suspicion.
        config: of the removal.
        directory: keeps factors and refits, so that a killed job goes on.
        recording: of the training of a model, by `RecordExamples`. That of a
            run is found in its folder.
        progress: show progress bars.

    Returns:
        A row for each training example. The edited network stands for the
        dropped one, the given network for the tied one: `tied_gap` is how much
        less it believes the label without its memory.

    Raises:
        ValueError: the model has no kernel to edit, or labels are next tokens;
            see `remove_memory`. The recording is of other examples or labels,
            or of a part of the training.

    Example:
        >>> scores = score_by_removal(model, examples)
        >>> scores.names[:3]
        ('combined', 'dropped_margin', 'disagreement')
    """
    # Before the removal, which takes longer: it may refuse a recording.
    recorded = course_of(source, examples, recording)
    before = model_of(source, examples)
    after, _ = remove_memory(
        source, examples, config, directory=directory, progress=progress
    )
    return scores_of_edited(before, after, examples, recorded)


def course_of(
    source: Source, examples: Examples, recording: Recording | None = None
) -> dict[str, np.ndarray]:
    """The scores of the course of a training, as far as it is known.

    A network with tied dropout has memory for each example from the first
    epochs on: it learns wrong labels about as early as right ones.
    """
    if recording is not None:
        return scores_of_recording(recording, examples.train)
    if isinstance(source, Run) and _is_without_ties(source):
        return recorded_scores(source, examples)
    return {}


def scores_of_edited(
    before: keras.Model,
    after: keras.Model,
    examples: Examples,
    recorded: Mapping[str, np.ndarray] | None = None,
) -> ExampleScores:
    """Scores from a network as trained and the same without its memory.

    Args:
        before: as it was trained.
        after: without its memory.
        examples: those it was trained on, and others.
        recorded: scores of the course of its training; see `course_of`.
    """
    train = examples.train
    others = examples.take(~examples.is_trained_on)
    held_out = None
    if len(others):
        held_out = predict_logits(after, others), others.label
    return scores_of_judges(
        train,
        dropped=predict_logits(after, train),
        tied=predict_logits(before, train),
        held_out=held_out,
        recorded=recorded,
    )
