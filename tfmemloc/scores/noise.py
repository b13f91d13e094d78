"""How labels go wrong, told by predictions that did not see them.

    P(label y of x)  =  sum over true classes t of  p_T(t | x) A[t, y]

p_T are the predictions, softmax(logits / T), and A are the rates at which a
class is labelled as each other. Four kinds of A explain the labels:

    none     no label is wrong
    any      every label is wrong at one rate, and is then any other class
    class    each class at its own rate, and then any other
    pairs    each class as each other one, at a rate of its own

Of each, T and A are those of the greatest likelihood; of the kinds, that one is
taken which the Bayesian information criterion prefers. So a network's confusion
is not taken for that of the people who labelled: where its predictions explain
the labels, nothing else has to.

Noise that follows from the inputs looks like knowledge to such predictions, and
is not seen here: see `is_predictable`.

References: Dawid and Skene, Maximum Likelihood Estimation of Observer
Error-Rates Using the EM Algorithm, 1979; Schwarz, Estimating the Dimension of a
Model, 1978; Guo et al., On Calibration of Modern Neural Networks, 2017.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from tfmemloc import losses

KINDS = ("none", "any", "class", "pairs")
# Of labels whose noise such predictions cannot see.
FOLLOWS = "follows"

# The temperature is sought between these, for so many examples at most.
_COLDEST, _HOTTEST, _ASKED = 0.05, 20.0, 10_000
_CLOSE = 0.02  # In the logarithm of the temperature.
_MOST_ROUNDS, _SAME_RATE = 300, 1e-5
_FIRST_RATE, _TINY = 0.1, 1e-30
# Rates below are as good as none.
_RARE = 0.005
# Of a class, no more than so many go wrong as pairs: else labels that nothing
# predicts could be taken for the opposite of what they say.
_HALF = 0.5
# How many standard errors agreement is too high by, and by how much.
_SURELY, _MUCH = 3.0, 0.02


class Noise(NamedTuple):
    """How labels of some examples went wrong.

    Attributes:
        kind: one of `KINDS`.
        temperature: T.
        rates: A, [classes, classes]; rows are true classes.
    """

    kind: str
    temperature: float
    rates: np.ndarray

    def is_uneven(self, wrong: float) -> bool:
        """Whether some labels are more likely wrong by their class alone.

        Args:
            wrong: how many labels are wrong; fewer than there are rates would
                not tell these apart.
        """
        classes = len(self.rates)
        rates = {"class": classes, "pairs": classes * (classes - 1)}
        return wrong >= rates.get(self.kind, np.inf)

    def log_chance(self, logits: np.ndarray) -> np.ndarray:
        """What the predictions say at T: log-probabilities [N, classes]."""
        return losses.log_softmax(logits / self.temperature)

    def true_classes(self, logits: np.ndarray, label: np.ndarray) -> np.ndarray:
        """p(true class | prediction, label): [N, classes]."""
        chance = _chance(logits, self.temperature)
        return _explained(chance, label, self.rates)[0]

    def with_rates(self, log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Log-probabilities of the true classes, labels taken into account.

        Args:
            log_p: [N, classes] of whoever judges; at no temperature.
            label: [N].
        """
        rates = np.log(np.maximum(self.rates, _TINY))
        return losses.log_softmax(log_p + rates.T[label])

    def suspicion(self, logits: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The probability that each label is wrong: [N]."""
        own = np.arange(len(label)), label
        return 1 - self.true_classes(logits, label)[own]


def fit_noise(logits: np.ndarray, label: np.ndarray) -> Noise:
    """How the labels went wrong, by predictions that did not see them.

    Args:
        logits: [N, classes] on examples whose own labels had no say in them:
            left out, by cross-validation, or not trained on.
        label: [N] as given.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> true = rng.integers(0, 3, 900)
        >>> label = np.where(rng.random(900) < 0.2, (true + 1) % 3, true)
        >>> noise = fit_noise(4 * np.eye(3)[true], label)
        >>> noise.kind, noise.rates[0].round(1).tolist()
        ('pairs', [0.8, 0.2, 0.0])
    """
    step = -(-len(label) // _ASKED)
    some, of_some = logits[::step], label[::step]
    fits = [
        (_criterion(kind, some, of_some, found), kind, found)
        for kind in KINDS
        if (found := _temperature(kind, some, of_some)) is not None
    ]
    _, kind, temperature = min(fits)
    rates = _rates(kind, _chance(logits, temperature), label)
    return Noise(kind, temperature, rates)


def is_predictable(
    left_out: tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray],
) -> bool:
    """Whether the wrong labels themselves follow from the inputs.

    Predictions learned from the training labels then agree better with those
    that they did not see than with the labels of other examples.

    Args:
        left_out: logits [N, classes] and labels of the training examples.
        others: the same of others.
    """
    right, right_of_others = (
        (logits.argmax(axis=1) == label) for logits, label in (left_out, others)
    )
    if not len(right_of_others):
        return False
    lead = right.mean() - right_of_others.mean()
    error = np.sqrt(
        right.var() / len(right) + right_of_others.var() / len(right_of_others)
    )
    return bool(lead > _MUCH and lead > _SURELY * error)


def _chance(logits: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp(losses.log_softmax(logits / temperature))


def _price(kind: str, rates: np.ndarray, examples: int) -> float:
    """Half of what the criterion asks for the rates of a kind.

    Of `class` and `pairs`, rates that are hardly above 0 ask for nothing but
    that the others are named.
    """
    classes = len(rates)
    if kind in ("none", "any"):
        return KINDS.index(kind) * np.log(examples) / 2
    found = 1 - np.diag(rates)
    if kind == "pairs":
        found = rates[~np.eye(classes, dtype=bool)]
    count = max(1, int((found > _RARE).sum()))
    parts = np.array([len(found), count, len(found) - count])
    names = special.gammaln(parts + 1) @ [1, -1, -1]
    return count * np.log(examples) / 2 + names


def _temperature(kind: str, logits, label) -> float | None:
    """The best one; None where the labels can never pay for the rates."""
    classes = logits.shape[1]
    if kind == "pairs" and len(label) < classes**2:
        return None
    found = optimize.minimize_scalar(
        lambda log_t: -_log_likelihood(kind, logits, label, np.exp(log_t))[0],
        bounds=(np.log(_COLDEST), np.log(_HOTTEST)),
        method="bounded",
        options={"xatol": _CLOSE},
    )
    return float(np.exp(found.x))


def _criterion(kind: str, logits, label, temperature: float) -> float:
    """Half of the Bayesian information criterion; less is better."""
    likelihood, rates = _log_likelihood(kind, logits, label, temperature)
    return _price(kind, rates, len(label)) - likelihood


def _log_likelihood(
    kind: str, logits, label, temperature: float
) -> tuple[float, np.ndarray]:
    """Of the labels, at the best rates; and these."""
    chance = _chance(logits, temperature)
    rates = _rates(kind, chance, label)
    _, likelihood = _explained(chance, label, rates)
    return float(np.log(np.maximum(likelihood, _TINY)).sum()), rates


def _explained(chance, label, rates) -> tuple[np.ndarray, np.ndarray]:
    """p(true class | prediction, label) [N, classes]; p(label) [N]."""
    joint = chance * rates.T[label]
    likelihood = joint.sum(axis=1)
    return joint / np.maximum(likelihood, _TINY)[:, np.newaxis], likelihood


def _rates(kind: str, chance: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The rates of the greatest likelihood, by expectation maximization."""
    classes = chance.shape[1]
    if kind == "none":
        return np.eye(classes)
    given = np.eye(classes)[label]
    rates = _spread(np.full(classes, _FIRST_RATE))
    for _ in range(_MOST_ROUNDS):
        true, _ = _explained(chance, label, rates)
        counts = true.T @ given
        before, rates = rates, _of_counts(kind, counts, rates)
        if np.abs(rates - before).max() < _SAME_RATE:
            break
    return rates


def _of_counts(kind: str, counts: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The rates of a kind where true classes were labelled so often."""
    classes = len(counts)
    total, right = counts.sum(axis=1), np.diag(counts)
    if kind == "any":
        wrong = 1 - right.sum() / total.sum()
        return _spread(np.full(classes, min(wrong, 1 - 1 / classes)))
    # A class that nothing belongs to keeps its rates.
    is_used = total > _TINY
    total = np.where(is_used, total, 1.0)
    wrong = np.where(is_used, 1 - right / total, 1 - np.diag(before))
    if kind == "class":
        return _spread(np.minimum(wrong, 1 - 1 / classes))
    rates = np.where(
        is_used[:, np.newaxis], counts / total[:, np.newaxis], before
    )
    rates *= np.minimum(1, _HALF / np.maximum(wrong, _TINY))[:, np.newaxis]
    np.fill_diagonal(rates, np.maximum(1 - wrong, _HALF))
    return rates


def _spread(wrong: np.ndarray) -> np.ndarray:
    """Rates of classes that are wrong so often, and then any other class."""
    classes = len(wrong)
    rates = np.tile(wrong[:, np.newaxis] / (classes - 1), (1, classes))
    np.fill_diagonal(rates, 1 - wrong)
    return rates
