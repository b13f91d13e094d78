"""Scores from predictions that were made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfmemloc.data.examples import Examples, require_examples
from tfmemloc.scores.checks import (
    check_classes,
    checked_held_out,
    log_probabilities,
    warn_of_in_sample,
)
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.of_training import (
    dynamics,
    errors_of,
    margins,
    signed_entropy,
)
from tfmemloc.scores.ranking import ranked


def scores_of_logits(
    examples: Examples,
    *,
    dropped: np.ndarray,
    tied: np.ndarray | None = None,
    by_epoch: np.ndarray | None = None,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    prior: str | np.ndarray = "auto",
    extra_scores: Mapping[str, np.ndarray] | None = None,
) -> ExampleScores:
    """Scores examples from predictions that were made elsewhere.

    Predictions are logits, log-probabilities, or probabilities (rows that are
    not negative and add up to 1).

    Args:
        examples: N training examples.
        dropped: predictions [N, classes] of a network that did not memorize
            the labels: with tied dropout in drop mode, or by cross-validation.
            Or [J, N, classes] of J judging epochs or networks.
        tied: predictions [N, classes] of the network as trained.
        by_epoch: the same after each of E epochs, [E, N, classes].
        held_out: (predictions of M other examples in the form of `dropped`,
            [M] their labels), to which the temperature is fitted. None, or
            fewer than 50, leave it at 1.
        prior: true shares of the classes: `"equal"`; `"labels"`, those of the
            labels; `"auto"`, estimated where the predictions are sure, else
            those of the labels where the most frequent is over three times as
            frequent as the rarest, else equal; or [classes] numbers.
        extra_scores: further scores by name, [N] each, more is more suspicious.

    Returns:
        All scores that these predictions allow. The judging predictions are
        averaged and adjusted to the prior. The combined ranking is the mean of
        two ranks of this average, by margin and by probability of the label.
        The suspicion is the probability that the label is wrong, given this
        average and the estimated rates at which each class is labelled as
        another.

    Raises:
        TypeError: the examples are none.
        ValueError: a shape does not fit the examples, a number is NaN, a name
            of `extra_scores` is taken, there is only one class, or some of the
            examples were trained on and others not.

    Warns:
        UserWarning: the predictions agree with nearly all labels, as those of
            a network do that was trained on them.

    Example:
        >>> table = np.random.default_rng(0).normal(size=(6, 3))
        >>> examples = from_arrays(table, [0, 1, 0, 1, 0, 1])
        >>> chance = np.array([[0.9, 0.1], [0.1, 0.9]] * 2 + [[0.2, 0.8]] * 2)
        >>> scores = scores_of_logits(examples.train, dropped=chance)
        >>> [row["example_id"] for row in scores.suspects()]
        [4]
    """
    require_examples(examples)
    _check_trained_on(examples)
    check_classes(examples)
    label = examples.label
    dropped = log_probabilities("dropped", dropped, examples, (2, 3))
    if held_out is not None:
        held_out = checked_held_out(held_out, examples, dropped)
    judges = dropped.reshape(-1, *dropped.shape[-2:])
    warn_of_in_sample(judges, label, held_out)
    if tied is not None:
        tied = log_probabilities("tied", tied, examples, (2,))
    values = values_of(label, judges, tied=tied)
    if by_epoch is not None:
        by_epoch = log_probabilities("by_epoch", by_epoch, examples, (3,))
        values |= dynamics(
            np.stack([margins(log_p, label) for log_p in by_epoch]),
            np.stack([errors_of(log_p, label) for log_p in by_epoch]),
            -by_epoch[:, np.arange(len(label)), label],
        )
        values["sei"] = signed_entropy(by_epoch, label)
    return ranked(examples, judges, held_out, prior, values, extra_scores)


def _check_trained_on(examples: Examples) -> None:
    """Refuses examples of which some were trained on and others not."""
    trained_on = int(examples.is_trained_on.sum())
    if 0 < trained_on < len(examples):
        raise ValueError(
            f"{examples.name} has {trained_on} examples that were trained on "
            f"and {len(examples) - trained_on} others, whose predictions do "
            "not compare. Expected one kind: `examples.train`; others go into "
            "`held_out`."
        )


def values_of(label, judges, *, tied=None) -> dict[str, np.ndarray]:
    """The scores of the predictions of one training: [N] each."""
    own, last = (np.arange(len(label)), label), judges[-1]
    chance = np.exp(judges[:, own[0], own[1]])
    values = {
        "dropped_margin": -margins(last, label),
        "disagreement": 1 - chance.mean(axis=0),
    }
    if tied is not None:
        values |= {"tied_gap": tied[own] - last[own], "loss": -tied[own]}
    return values
