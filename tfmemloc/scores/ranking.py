"""The ranking of labels, the suggested class, and the suspicion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfmemloc import losses
from tfmemloc.checks import check_choice
from tfmemloc.data.examples import Examples
from tfmemloc.scores.calibration import (
    fit_temperature,
    knows_the_task,
    lean,
)
from tfmemloc.scores.checks import TINY, checked_score
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.left_out import LeftOut
from tfmemloc.scores.noise import FOLLOWS, Noise, fit_noise, is_predictable
from tfmemloc.scores.of_training import margins
from tfmemloc.statistics import shared_ranks

# Classes whose labels differ less in number are taken to be equally frequent;
# and so are those whose estimated shares differ less.
_BALANCED, _NEARLY_EQUAL = 3.0, 1.5
# Judges that are this sure on the mean tell the shares.
_SHARP = 0.8
_SAME_SHARE, _MOST_ESTIMATES = 1e-4, 30

PRIORS = ("auto", "equal", "labels")

# A temperature is fitted to no fewer examples.
_FEWEST_HELD_OUT = 50

# The iteration over label rates stops below this change, or after this many
# rounds.
_SAME_RATE, _MOST_ROUNDS = 1e-6, 1000

# How much the course of a training counts in the ranking, beside the networks.
_COURSE = 2

# How often the lean to labels and the share of wrong ones are taken in turn.
_LEANS = 3

# How much what all other examples say counts where it is as often right as the
# judges are; else by the square of the ratio of their odds, up to a limit.
_LEFT_OUT, _MUCH_BETTER = 3.0, 10.0


def ranked(
    examples: Examples,
    judges,
    held_out,
    prior,
    values,
    extra_scores,
    course: np.ndarray | None = None,
    left_out: LeftOut | None = None,
    remembering: np.ndarray | None = None,
) -> ExampleScores:
    """The scores, and the ranking that the judges make.

    Args:
        examples: N training examples.
        judges: [J, N, classes] log-probabilities.
        held_out: the same of others, and their labels; or None.
        prior: see `true_shares`.
        values: name -> [N].
        extra_scores: further ones.
        course: [N] a score of the course of the training, which then counts
            twice as much as the networks.
        left_out: what all other examples say about each label, and about
            those that are held out. It joins ranking and suggestion, and the
            suspicion is its own: it alone did not see the labels.
        remembering: [J, N, classes] what the networks said before memory was
            taken out of them, which are better judges where few labels are
            wrong; see `_trusts`. Needs `left_out`.
    """
    label = examples.label
    prior = true_shares(judges, label, prior)
    judged, judged_held_out = _judged(judges, label, prior, held_out)
    others = None
    if held_out is not None and len(held_out[1]) >= _FEWEST_HELD_OUT:
        others = judged_held_out, held_out[1]
    if left_out is None:
        verdict = _Verdict(
            judged,
            [_doubts(judged, label)],
            [1],
            _suspicion(judged, label, others),
        )
    else:
        networks = [judged]
        if remembering is not None:
            networks.append(_judged(remembering, label, prior, None)[0])
        verdict = _beside_all_others(networks, left_out, label, prior, others)
        values = values | {"left_out": verdict.doubts[0]}
    doubts, counts = list(verdict.doubts), list(verdict.counts)
    if course is not None:
        doubts.append(shared_ranks(course))
        counts.append(_COURSE)
    checked: dict[str, np.ndarray] = {}
    for name, value in [*values.items(), *(extra_scores or {}).items()]:
        checked[name] = checked_score(name, value, examples, checked)
    return ExampleScores(
        names=("combined", *checked),
        example_id=examples.example_id,
        subset=examples.subset,
        label=label,
        true_label=examples.true_label,
        suggested=verdict.believed.argmax(axis=1),
        values=np.stack(
            [np.average(doubts, axis=0, weights=counts), *checked.values()],
            axis=1,
        ),
        suspicion=verdict.suspicion,
        noise=verdict.noise,
        inputs_digest=examples.inputs_digest(),
    )


class _Verdict(NamedTuple):
    """What judges say of N labels.

    Attributes:
        believed: [N, classes] log-probabilities of all of them together.
        doubts: of each, [N] ranks of the labels.
        counts: how much each of these counts.
        suspicion: [N] the probability that the label is wrong.
        noise: the kind of noise, where it is known.
    """

    believed: np.ndarray
    doubts: Sequence[np.ndarray]
    counts: Sequence[float]
    suspicion: np.ndarray
    noise: str = ""


def _beside_all_others(
    networks, left_out: LeftOut, label, prior, others
) -> _Verdict:
    """What networks say, beside what all other examples say.

    Args:
        networks: [N, classes] log-probabilities each; the first is believed.
        left_out: what all other examples say.
        label: [N].
        prior: [classes] true shares.
        others: predictions of the first network on examples that were not
            trained on, and their labels; or None.
    """
    noise = fit_noise(left_out.train, label)
    said = noise.log_chance(left_out.train)
    fair = _adjusted(said, label, prior)
    better = _better(left_out, networks[0], label, others)
    suspicion = noise.suspicion(left_out.train, label)
    opinions = [fair, *networks]
    if noise.is_uneven(suspicion.sum()):
        # Which labels are wrong says more than shares of classes do.
        opinions = [noise.with_rates(each, label) for each in (said, *networks)]
    return _Verdict(
        networks[0] + better * fair,
        [_doubts(opinion, label) for opinion in opinions],
        [_LEFT_OUT * better, *_trusts(networks, label, suspicion.mean())],
        suspicion,
        _kind(noise, left_out, label, others),
    )


def _kind(noise: Noise, left_out: LeftOut, label, others) -> str:
    """How labels go wrong, or that it cannot be seen."""
    if others is not None and is_predictable(
        (left_out.train, label), (left_out.others, others[1])
    ):
        return FOLLOWS
    return noise.kind


def _doubts(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
    """[N] in [0, 1]: the mean rank by margin and by probability."""
    own = np.arange(len(label)), label
    return (
        shared_ranks(-margins(log_p, label)) + shared_ranks(-log_p[own])
    ) / 2


def _trusts(networks: Sequence[np.ndarray], label, rate: float) -> np.ndarray:
    """How much each network counts; all together 1.

    One that doubts twice as many labels as are wrong is wrong in half of them
    at least; one that doubts half as many overlooks half. So a network is
    trusted by the ratio of the two numbers, whichever is smaller, squared.

    Args:
        networks: [N, classes] log-probabilities each.
        label: [N].
        rate: the share of labels that are wrong.
    """
    least = 0.5 / len(label)
    doubted = [(each.argmax(axis=1) != label).mean() for each in networks]
    ratio = np.maximum(doubted, least) / max(rate, least)
    trust = np.minimum(ratio, 1 / ratio) ** 2
    return trust / trust.sum()


def _better(left_out: LeftOut, judged, label, others) -> float:
    """By how much those who left the label out are better than the judges.

    The square of the ratio of their odds to be right beyond chance: on
    examples that neither was trained on, or else on the training examples,
    where the judges look better than they are.
    """
    said, judged_here, wanted = left_out.train, judged, label
    if others is not None:
        said, (judged_here, wanted) = left_out.others, others
    odds = [_odds(each, wanted) for each in (said, judged_here)]
    return min((odds[0] / odds[1]) ** 2, _MUCH_BETTER)


def _odds(logits: np.ndarray, label: np.ndarray) -> float:
    """Of being right beyond chance; never 0 and never infinite."""
    right = (logits.argmax(axis=1) == label).sum()
    share = (right + 0.5) / (len(label) + 1)
    chance = 1 / logits.shape[1]
    beyond = max(share - chance, 0.5 / (len(label) + 1))
    return beyond / (1 - share)


def _suspicion(judged, label, others) -> np.ndarray:
    """The probability that each label is wrong: [N].

    Args:
        judged: [N, classes] log-probabilities.
        label: [N].
        others: the same of 50 examples or more that were not trained on, to
            calibrate by; or None.
    """
    own = np.arange(len(label)), label

    def of(judged, temperature):
        chance = np.exp(losses.log_softmax(judged / temperature))
        return 1 - _true_classes(chance, label)[own]

    if others is None:
        return of(judged, 1.0)
    temperature = fit_temperature(*others)
    suspicion = of(judged, temperature)
    if not knows_the_task(*others):
        return suspicion
    lead, lead_of_others = margins(judged, label), margins(*others)
    for _ in range(_LEANS):
        leaning = judged.copy()
        leaning[own] -= lean(lead, lead_of_others, float(suspicion.mean()))
        suspicion = of(losses.log_softmax(leaning), temperature)
    return suspicion


def _judged(judges, label, prior: np.ndarray, held_out):
    """The judges' mean, adjusted to the prior: log-probabilities.

    [N, classes] of the training examples, [M, classes] of the held-out ones.
    """
    if held_out is not None:
        judges = np.concatenate([judges, held_out[0]], axis=1)
    total = sum(np.exp(_adjusted(log_p, label, prior)) for log_p in judges)
    mean = np.log(np.maximum(total / len(judges), TINY))
    judged = _adjusted(mean, label, prior)
    return judged[: len(label)], judged[len(label) :]


def _adjusted(log_p, label, prior: np.ndarray) -> np.ndarray:
    """Log-probabilities whose class shares are those of the prior.

    The shares are means over the training examples, which come first.
    """
    share = np.exp(log_p[: len(label)]).mean(axis=0)
    tiny = 1e-6
    shift = np.log(np.maximum(share, tiny)) - np.log(np.maximum(prior, tiny))
    return losses.log_softmax(log_p - shift)


def true_shares(judges, label, prior: str | np.ndarray) -> np.ndarray:
    """The true shares of the classes, [classes], that add up to 1.

    `auto`: judges that are sure of their predictions tell the shares, which
    labels that are wrong in some classes alone do not; where these estimates
    are nearly equal, equal shares. Judges that are not sure leave the labels'
    shares, or equal ones where the labels differ little in number.
    """
    classes = judges.shape[2]
    if isinstance(prior, str):
        check_choice("prior", prior, PRIORS)
        count = np.bincount(label, minlength=classes)
        if prior == "auto":
            prior = _auto_shares(judges, label, count)
        else:
            prior = np.ones(classes) if prior == "equal" else count
    prior = np.asarray(prior, float)
    is_good = prior.shape == (classes,) and np.isfinite(prior).all()
    if not is_good or not (prior >= 0).all() or not prior.any():
        raise ValueError(
            f"`prior` expected {classes} finite shares that are not negative, "
            f"one for each class. Received: {prior.tolist()}."
        )
    return prior / prior.sum()


def _auto_shares(judges, label, count: np.ndarray) -> np.ndarray:
    """The shares of `auto`, or numbers that are proportional to them."""
    found, balanced = count, _BALANCED
    if _sureness(judges) >= _SHARP:
        found = _estimated_shares(judges, label, count)
        balanced = _NEARLY_EQUAL
    is_equal = found.max() <= balanced * found.min()
    return np.ones(len(count)) if is_equal else found


def _sureness(judges) -> float:
    """The mean largest probability, from 0 (all classes alike) to 1."""
    chance = 1 / judges.shape[2]
    return float((np.exp(judges).max(axis=2).mean() - chance) / (1 - chance))


def _estimated_shares(judges, label, count: np.ndarray) -> np.ndarray:
    """The shares of the true classes, as judges and labels together tell.

    Alternates between the shares and the true classes that follow from them.
    """
    shares = (count + 1) / (count + 1).sum()
    for _ in range(_MOST_ESTIMATES):
        judged, _ = _judged(judges, label, shares, None)
        before, shares = (
            shares,
            _true_classes(np.exp(judged), label).mean(axis=0),
        )
        if np.abs(shares - before).max() < _SAME_SHARE:
            break
    return shares


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
