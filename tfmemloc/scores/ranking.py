"""The ranking of labels, the suggested class, and the suspicion."""

from __future__ import annotations

import numpy as np

from tfmemloc import losses
from tfmemloc.checks import check_choice
from tfmemloc.data.examples import Examples
from tfmemloc.scores.calibration import fit_temperature
from tfmemloc.scores.checks import TINY, checked_score
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.of_training import margins
from tfmemloc.statistics import shared_ranks

# Classes whose labels differ less in number are taken to be equally frequent.
_BALANCED = 3.0

PRIORS = ("auto", "equal", "labels")

# A temperature is fitted to no fewer examples.
_FEWEST_HELD_OUT = 50

# The iteration over label rates stops below this change, or after this many
# rounds.
_SAME_RATE, _MOST_ROUNDS = 1e-6, 1000


def ranked(
    examples: Examples, judges, held_out, prior, values, extra_scores
) -> ExampleScores:
    """The scores, and the ranking that the judges make."""
    label = examples.label
    own = np.arange(len(label)), label
    checked: dict[str, np.ndarray] = {}
    for name, value in [*values.items(), *(extra_scores or {}).items()]:
        checked[name] = checked_score(name, value, examples, checked)
    judged, judged_held_out = _judged(judges, label, prior, held_out)
    temperature = 1.0
    if held_out is not None and len(held_out[1]) >= _FEWEST_HELD_OUT:
        temperature = fit_temperature(judged_held_out, held_out[1])
    chance = np.exp(losses.log_softmax(judged / temperature))
    combined = shared_ranks(-margins(judged, label))
    combined += shared_ranks(-judged[own])
    return ExampleScores(
        names=("combined", *checked),
        example_id=examples.example_id,
        subset=examples.subset,
        label=label,
        true_label=examples.true_label,
        suggested=judged.argmax(axis=1),
        values=np.stack([combined / 2, *checked.values()], axis=1),
        suspicion=1 - _true_classes(chance, label)[own],
        inputs_digest=examples.inputs_digest(),
    )


def _judged(judges, label, prior, held_out):
    """The judges' mean, adjusted to the prior: log-probabilities.

    [N, classes] of the training examples, [M, classes] of the held-out ones.
    """
    if held_out is not None:
        judges = np.concatenate([judges, held_out[0]], axis=1)
    total = sum(np.exp(_adjusted(log_p, label, prior)) for log_p in judges)
    mean = np.log(np.maximum(total / len(judges), TINY))
    judged = _adjusted(mean, label, prior)
    return judged[: len(label)], judged[len(label) :]


def _adjusted(log_p, label, prior) -> np.ndarray:
    """Log-probabilities whose class shares are those of the prior.

    The shares are means over the training examples, which come first.
    """
    share = np.exp(log_p[: len(label)]).mean(axis=0)
    wanted = _shares(label, log_p.shape[1], prior)
    tiny = 1e-6
    shift = np.log(np.maximum(share, tiny)) - np.log(np.maximum(wanted, tiny))
    return losses.log_softmax(log_p - shift)


def _shares(label, classes: int, prior: str | np.ndarray) -> np.ndarray:
    """The true shares of the classes, [classes], that add up to 1."""
    if isinstance(prior, str):
        check_choice("prior", prior, PRIORS)
        count = np.bincount(label, minlength=classes)
        is_balanced = count.max() <= _BALANCED * count.min()
        is_equal = prior == "equal" or (prior == "auto" and is_balanced)
        prior = np.ones(classes) if is_equal else count
    prior = np.asarray(prior, float)
    if prior.shape != (classes,) or not (prior >= 0).all() or not prior.any():
        raise ValueError(
            f"`prior` expected {classes} shares that are not negative, one "
            f"for each class. Received: {prior.tolist()}."
        )
    return prior / prior.sum()


def _true_classes(chance: np.ndarray, label: np.ndarray) -> np.ndarray:
    """p(true class | prediction, label): [N, classes].

    Alternates between this probability and the rates at which each class is
    labelled as each other class, until the rates converge. One more example of
    each class counts as labelled at random, so that no rate is 0.

    Args:
        chance: [N, classes] p(true class | prediction), calibrated.
        label: [N] given.

    Reference: Dawid and Skene, Maximum Likelihood Estimation of Observer
    Error-Rates Using the EM Algorithm, 1979.
    """
    classes = chance.shape[1]
    given = np.eye(classes)[label]
    rates = np.where(np.eye(classes, dtype=bool), 0.9, 0.1 / (classes - 1))
    for _ in range(_MOST_ROUNDS):
        true = np.maximum(chance, TINY) * rates[:, label].T
        true /= true.sum(axis=1, keepdims=True)
        counts = true.T @ given + 1 / classes
        before, rates = rates, counts / counts.sum(axis=1, keepdims=True)
        if np.abs(rates - before).max() < _SAME_RATE:
            break
    return true
