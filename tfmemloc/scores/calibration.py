"""How sure predictions may be, by labels of examples not trained on.

    p_T  =  softmax(logits / T)

with the T of the smallest loss (Guo et al., "On Calibration of Modern Neural
Networks", 2017). Where those labels are wrong in part, that T is too large: the
network looks unsure where it is right and the label is not. So the labels are
also explained with a rate e of wrong ones,

    P(label)  =  (1 - e) p_T(label) + e (1 - p_T(label)) / (classes - 1),

and where e is 5 % or more, its T is taken instead, with a warning. A smaller e
is also what a few confident mistakes of the network look like. So even the
lower end of the 95 % interval of e has to reach 5 % (of 70 labels, 8 look
wrong then), and the network has to agree with 80 % of the labels: one that is
often wrong is not believed.

A network without its memory still leans to the labels that it was trained on,
if only a little, and would trust wrong ones too much. By how much is seen where
it was not trained: the lead of the label over the best other class is larger,
by `lean`, among the right labels of the training examples than among those of
others.
"""

from __future__ import annotations

import warnings

import numpy as np

from tfmemloc import losses, statistics

_TEMPERATURES = np.exp(np.linspace(np.log(0.1), np.log(10), 201))
_RATES = np.linspace(0, 0.6, 61)
# From this rate on labels are taken for dirty.
_DIRTY = 0.05
_KNOWS = 0.8
# Where leads are compared.
_QUANTILES = (0.25, 0.5, 0.75)
_TINY = 1e-30


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """The temperature by which to divide logits.

    Args:
        logits: [M, classes] on examples that were not trained on.
        label: [M], as they were given.

    Warns:
        UserWarning: some of the labels look wrong; says about how many.
    """
    chance = np.stack(
        [
            np.exp(-losses.measured_losses(label, logits / temperature))
            for temperature in _TEMPERATURES
        ]
    )
    classes = logits.shape[1]
    explained = np.array(
        [
            np.log(
                np.maximum(
                    (1 - rate) * chance + rate * (1 - chance) / (classes - 1),
                    _TINY,
                )
            ).mean(axis=1)
            for rate in _RATES
        ]
    )
    rate, place = np.unravel_index(explained.argmax(), explained.shape)
    knows = knows_the_task(logits, label)
    if not _surely_dirty(_RATES[rate], len(label)) or not knows:
        return float(_TEMPERATURES[np.argmax(explained[0])])
    warnings.warn(
        f"About {_RATES[rate]:.0%} of the {len(label)} labels by which the "
        "suspicion is calibrated look wrong themselves, or the network is "
        "surely wrong on as many. The suspicion takes that into account; test "
        "accuracies do not. Expected right labels there: look at some of them.",
        stacklevel=3,
    )
    return float(_TEMPERATURES[place])


def knows_the_task(logits: np.ndarray, label: np.ndarray) -> bool:
    """Whether a network agrees with most labels that it did not see."""
    return bool((logits.argmax(axis=1) == label).mean() >= _KNOWS)


def lean(lead: np.ndarray, lead_of_others: np.ndarray, wrong: float) -> float:
    """How much further the label leads where it was trained on; at least 0.

    Args:
        lead: [N] log-probability of the label less the best other one, of the
            training examples.
        lead_of_others: [M] the same of examples that were not trained on.
        wrong: share of the training labels that are wrong, whose leads are
            taken to be the smallest.
    """
    gaps = [
        np.quantile(lead, wrong + (1 - wrong) * q)
        - np.quantile(lead_of_others, q)
        for q in _QUANTILES
    ]
    return max(0.0, float(np.mean(gaps)))


def _surely_dirty(rate: float, labels: int) -> bool:
    low, _ = statistics.share_interval(round(rate * labels), labels)
    return low >= _DIRTY
