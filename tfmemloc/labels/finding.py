"""Finds wrong labels by whatever network there is.

A network with tied dropout says what it knows without its memory: its dropped
predictions judge the labels (`tfmemloc.scores`). Any other trained network is
asked after the memory was taken out of a copy of it: the curvature edit
(`tfmemloc.removal.curvature`) needs no example ids and no second training, and
the edited network no longer believes most of the wrong labels. With either goes
what all other examples say about a label (`tfmemloc.scores.left_out`), which
judges alone where there is no network.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras

from tfmemloc.checks import check_count
from tfmemloc.data.examples import Examples
from tfmemloc.labels.by_removal import is_without_ties, score_by_removal
from tfmemloc.labels.review import write_review
from tfmemloc.labels.without_network import score_without_network
from tfmemloc.removal.curvature import CurvatureConfig
from tfmemloc.runs import Run
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.of_runs import ScoreConfig, score_examples
from tfmemloc.scores.suspects import check_examples, write_suspects


def find_label_errors(
    source: Run | Sequence[Run] | keras.Model | ExampleScores | None,
    examples: Examples,
    directory: str | os.PathLike,
    config: ScoreConfig | CurvatureConfig | None = None,
    *,
    shown: int | None = None,
    **options: Any,
) -> ExampleScores:
    """Ranks the training examples by how suspicious their labels are.

    Args:
        source: a run, or several of the same data that differ in their seed.
            With tied dropout their dropped networks judge (`score_examples`);
            without it, copies from which the memory was taken, as of a model
            (`score_by_removal`). Of a model with tied dropout the training is
            not known, and its dropped network judges as a copy would. Or scores
            that were made before. None: there is no network, and all other
            examples judge each label (`score_without_network`).
        examples: the data of the run, or of the scores.
        directory: where `example_scores.npz` and `.json`, `suspects.csv` (all
            training examples, the most suspicious first), `issues.csv` (the
            same for cleanlab and FiftyOne), `suspects.html` (pictures, texts
            or rows), `review.html` (a page to decide on) and `suspects.json`
            (how well each score finds the labels that are known to be wrong)
            are written; and `work`, what a removal keeps to go on where it
            was killed.
        config: what is scored, or how the memory is taken out.
        shown: number of examples on the pages, suspects or not, the most
            suspicious first; None shows the first suspects.
        **options: of the function that scores.

    Returns:
        The scores. A *suspect* is an example for which, without its memory
        and after adjustment to the class shares, another label than the given
        one is the most probable.

    Raises:
        ValueError: the scores are of other examples, or `shown` is no number
            of examples; see `score_examples`.
        TypeError: the source is none of these, the config is of another kind
            of source, or there are options for scores that were made before.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> scores = find_label_errors(run, run.examples(), "suspects")
        >>> sorted(os.listdir("suspects"))[-1]
        'suspects.json'
    """
    if shown is not None:
        check_count("shown", shown)
    scores = _scores(source, examples, directory, config, options)
    check_examples(scores, examples)
    write_review(directory, scores, examples, shown)
    write_suspects(directory, scores, examples, shown)
    return scores


def _scores(source, examples, directory, config, options) -> ExampleScores:
    """The scores of any source."""
    if source is None:
        if config is not None:
            raise TypeError(
                "Without a network, `config` expected None. Received: "
                f"{type(config).__name__}."
            )
        return score_without_network(examples, **options)
    if isinstance(source, ExampleScores):
        if options or config:
            raise TypeError(
                "Scores that were made before expected no config and no "
                "options. Received: ExampleScores, options "
                f"{sorted(options)}, config {config}."
            )
        return source
    if isinstance(source, keras.Model) or is_without_ties(source):
        _check_config(source, config, CurvatureConfig)
        return score_by_removal(
            source,
            examples,
            config,
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
        "Expected a run, several runs, a Keras model, scores, or None for no "
        "network. Received: "
        f"{type(source).__name__}, options {sorted(options)}. "
        "`scores_of_logits` makes scores from any predictions."
    )


def _check_config(source, config, wanted: type) -> None:
    if config is not None and not isinstance(config, wanted):
        raise TypeError(
            f"For this source, a {type(source).__name__}, `config` expected a "
            f"{wanted.__name__}. Received: {type(config).__name__}."
        )
