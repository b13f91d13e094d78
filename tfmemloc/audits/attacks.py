"""Membership inference: was an example among those a network learned from?

An attack gives each example a score; the higher, the likelier a member. All of
them see phi = log(p / (1 - p)), with p the probability of the given label, of
the target network and of shadow networks, each trained on a random half. Of
shadows that trained on the example (IN) and those that did not (OUT):

    loss      phi of the target: the floor, needs no shadows
    lira      log N(phi; m_in, v_in) - log N(phi; m_out, v_out), with variances
              pooled over examples (Carlini et al., 2022)
    lira_offline   P[N(m_out, v_out) < phi]: OUT shadows alone
    rmia      share of the other examples z with (p / P) / (p_z / P_z) > 1,
              where P = (mean_IN p + mean_OUT p) / 2 (Zarifzadeh et al., 2024);
              the score is log(p / P), which orders the examples of a target in
              the same way and is comparable between targets
    rmia_offline   the same with P = ((1 + a) mean_OUT p + 1 - a) / 2, a = 0.3
    bavaria   log t(phi; IN) - log t(phi; OUT): Student-t predictives under a
              normal-inverse-gamma prior that is fitted to all examples

The prior's strength k0 is the variance within an example over that between
examples' means, and its shape a0 is taken from how much the variances of
examples differ (moments); so nothing is chosen by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

_A = 0.3
_TINY = 1e-12
# Shapes of the prior beyond which it is as good as a known variance.
_SHAPES = (2.5, 1e3)


class Shadows:
    """Sums over the models that trained on each example, or did not.

    Args:
        phi: [M, N] logit of the given label's probability.
        member: bool [M, N].
    """

    def __init__(self, phi: np.ndarray, member: np.ndarray):
        self.phi, self.member = phi, member
        # The probability without overflow.
        self.p = 0.5 * (1 + np.tanh(phi / 2))
        self._sums = {
            side: tuple(
                np.sum(np.where(which, values, 0.0), axis=0)
                for values in (np.ones_like(phi), phi, phi**2, self.p)
            )
            for side, which in (("in", member), ("out", ~member))
        }

    def memorization(self) -> np.ndarray:
        """Feldman and Zhang's estimates: [N]; NaN where a side has no model."""
        (members, *_, inside), (others, *_, outside) = (
            self._sums[side] for side in ("in", "out")
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return inside / members - outside / others

    def of(self, target: int, side: str) -> dict[str, np.ndarray]:
        """Of all models but the target: count, mean, sum of squares, mean p.

        Where there is none on a side, the mean is that of all examples.
        """
        which = self.member[target] == (side == "in")
        own = (
            np.ones_like(self.phi[target]),
            self.phi[target],
            self.phi[target] ** 2,
            self.p[target],
        )
        count, total, squares, chance = (
            of_all - np.where(which, of_target, 0.0)
            for of_all, of_target in zip(self._sums[side], own, strict=True)
        )
        has = count > 0
        if not has.any():
            raise ValueError(
                f"No shadow network is {side} for any example when model "
                f"{target} is the target. Expected networks on random halves, "
                "at least one on each side."
            )
        safe = np.maximum(count, 1)
        mean = total / safe
        p = chance / safe
        return {
            "count": count,
            "mean": np.where(has, mean, mean[has].mean()),
            "scatter": np.maximum(squares - total**2 / safe, 0.0) * has,
            "p": np.where(has, p, p[has].mean()),
        }


def loss(shadows: Shadows, target: int) -> np.ndarray:
    """The target's own confidence: float [N]."""
    return shadows.phi[target]


def lira(shadows: Shadows, target: int) -> np.ndarray:
    """The likelihood ratio of two normal distributions: float [N]."""
    phi = shadows.phi[target]
    scores = []
    for side in ("in", "out"):
        found = shadows.of(target, side)
        scores.append(
            stats.norm.logpdf(phi, found["mean"], np.sqrt(_pooled(found)))
        )
    return scores[0] - scores[1]


def lira_offline(shadows: Shadows, target: int) -> np.ndarray:
    """How far beyond what networks give that never saw it: float [N]."""
    found = shadows.of(target, "out")
    spread = np.sqrt(_pooled(found))
    return stats.norm.logcdf(shadows.phi[target], found["mean"], spread)


def rmia(shadows: Shadows, target: int) -> np.ndarray:
    """The logarithm of p over its mean: float [N]."""
    inside, outside = (shadows.of(target, side)["p"] for side in ("in", "out"))
    return _log(shadows.p[target]) - _log((inside + outside) / 2)


def rmia_offline(shadows: Shadows, target: int) -> np.ndarray:
    """The same without networks that saw the example: float [N]."""
    outside = shadows.of(target, "out")["p"]
    chance = ((1 + _A) * outside + 1 - _A) / 2
    return _log(shadows.p[target]) - _log(chance)


def bavaria(shadows: Shadows, target: int) -> np.ndarray:
    """The ratio of two Student-t predictives: float [N]."""
    phi = shadows.phi[target]
    scores = []
    for side in ("in", "out"):
        found = shadows.of(target, side)
        scores.append(_student(phi, found, *_prior(found)))
    return scores[0] - scores[1]


ATTACKS: Mapping[str, Callable[[Shadows, int], np.ndarray]] = {
    "loss": loss,
    "lira": lira,
    "lira_offline": lira_offline,
    "rmia": rmia,
    "rmia_offline": rmia_offline,
    "bavaria": bavaria,
}


def _pooled(found: Mapping[str, np.ndarray]) -> float:
    """The variance within examples, pooled over all of them."""
    freedom = np.sum(np.maximum(found["count"] - 1, 0))
    if freedom < 1:  # One shadow each: the spread of the examples instead.
        return max(float(np.var(found["mean"])), _TINY)
    return max(float(found["scatter"].sum() / freedom), _TINY)


def _log(chance: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(chance, _TINY))


def _prior(found: Mapping[str, np.ndarray]) -> tuple[float, ...]:
    """(m0, k0, a0, b0) by moments over all examples."""
    count, mean, scatter = found["count"], found["mean"], found["scatter"]
    within = _pooled(found)
    of_means = float(np.var(mean[count > 0]))
    between = max(
        of_means - within * float(np.mean(1 / count[count > 0])), _TINY
    )
    several = count > 1
    a0 = _SHAPES[1]
    if several.sum() > 1:
        variance = scatter[several] / (count[several] - 1)
        noise = 2 * within**2 * np.mean(1 / (count[several] - 1))
        spread = float(np.var(variance)) - noise
        if spread > 0:
            a0 = 2 + within**2 / spread
    a0 = float(np.clip(a0, *_SHAPES))
    m0 = float(mean[count > 0].mean())
    return m0, within / between, a0, within * (a0 - 1)


def _student(phi, found, m0, k0, a0, b0) -> np.ndarray:
    """The logarithm of the predictive density of each example."""
    count, mean, scatter = found["count"], found["mean"], found["scatter"]
    mean = np.where(count > 0, mean, m0)
    k = k0 + count
    m = (k0 * m0 + count * mean) / k
    a = a0 + count / 2
    b = b0 + scatter / 2 + k0 * count * (mean - m0) ** 2 / (2 * k)
    return stats.t.logpdf(phi, 2 * a, m, np.sqrt(b * (k + 1) / (a * k)))
