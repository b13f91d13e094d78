"""The population's side of the search: d mean_j l_j / d m under gates.

`exact` takes it anew under each example's own gates, at each step: a pass over
the population for each example and step, which is nearly all of the search's
time. `frozen` takes it once, with all units on. `cached` is in between:

    G(S)  ~  G(B) + sum over u in S - B of  [ G({u}) - G({}) ]

S are the removed units, and G({u}), the gradient with one unit removed, is the
same for all examples: it is taken once for each unit that any example removes.
B is the largest set of the example for which G was taken exactly: the empty one
at first. G is taken exactly, and B is the current set, where it matters: where
the lead of the first unit over the second is less than `sureness` times the
mean error that was found where G was taken so far. After one removal it is
exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfmemloc.units.config import SearchConfig

# Gates [B, U] -> G [B, U], exactly.
Exact = Callable[[np.ndarray], np.ndarray]
# Gates [B, U], the ids [B] and the gradients [B, U] of their examples ->
# [B, U] or [1, U].
Term = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
_AT_ONCE = 64  # Rows of gates.


def term_of(config: SearchConfig, exact: Exact, units: int) -> Term:
    """The term that a search asks for."""
    if config.ranking != "first_order" or config.population_term == "none":
        nothing = np.zeros((1, units), np.float32)
        return lambda gate, example_id, own: nothing
    if config.population_term == "exact":
        return lambda gate, example_id, own: _of_each_once(exact, gate)
    if config.population_term == "cached":
        return CachedTerm(exact, units, config.objective, config.sureness).of
    frozen = exact(np.ones((1, units), np.float32))
    return lambda gate, example_id, own: frozen


def _of_each_once(exact: Exact, gate: np.ndarray) -> np.ndarray:
    """G of equal rows of gates is the same: at first, and within a group."""
    rows, place = np.unique(gate, axis=0, return_inverse=True)
    return exact(rows)[place.ravel()]


class CachedTerm:
    """The term `cached` of one search.

    Args:
        exact: gives G.
        units: U.
        objective: of the search, `zero` or `step`: how units are ranked.
        sureness: how many times its usual error a lead must be.
    """

    def __init__(
        self, exact: Exact, units: int, objective: str, sureness: float
    ):
        self._exact_of = exact
        self._objective = objective
        self._sureness = sureness
        self._open = np.ones((1, units), np.float32)
        self._start = self._exact(self._open)[0]
        # (unit, its gate) -> what the change of it alone changes.
        self._changes: dict[tuple[int, float], np.ndarray] = {}
        # id -> (gates B, G there).
        self._bases: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._errors: list[float] = []

    def of(
        self, gate: np.ndarray, example_id: np.ndarray, own: np.ndarray
    ) -> np.ndarray:
        """G under each row of gates [B, U], of examples with gradients `own`.

        Where one unit does not surely lead, G is taken exactly.
        """
        self._take_changes(gate)
        found = np.stack(
            [
                self._summed(row, int(i))
                for row, i in zip(gate, example_id, strict=True)
            ]
        )
        leaders, lead = self._leaders(gate, found - own)
        error = np.mean(self._errors) if self._errors else np.inf
        # G of one unit is exact.
        is_exact = (gate != 1).sum(axis=1) <= 1
        doubted = np.flatnonzero(~is_exact & (lead < self._sureness * error))
        if not len(doubted):
            return found
        taken = self._exact(gate[doubted])
        for row, base in zip(doubted, taken, strict=True):
            error = np.abs(found[row] - base)[leaders[row]].max()
            self._errors.append(error)
            self._bases[int(example_id[row])] = gate[row].copy(), base
        found[doubted] = taken
        return found

    def _leaders(
        self, gate: np.ndarray, gradient: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first two units that have not moved [B, 2], and the lead [B]."""
        score = self._score(gradient)
        left = np.where(gate == 1, score, -np.inf)
        leaders = np.argsort(-left, axis=1, kind="stable")[:, :2]
        best = np.take_along_axis(score, leaders, axis=1)
        return leaders, best[:, 0] - best[:, -1]

    def _score(self, gradient: np.ndarray) -> np.ndarray:
        return np.abs(gradient) if self._objective == "step" else gradient

    def _summed(self, row: np.ndarray, example_id: int) -> np.ndarray:
        base, start = self._bases.get(example_id, (self._open[0], self._start))
        if not np.array_equal(np.where(base != 1, row, 1), base):
            base, start = self._open[0], self._start  # Of another search.
        total = start.copy()
        for unit in np.flatnonzero(row != base):
            total += self._changes[int(unit), float(row[unit])]
        return total

    def _take_changes(self, gate: np.ndarray) -> None:
        """Takes the changes that these gates ask for and nobody did before."""
        keys = {
            (int(unit), float(gate[row, unit]))
            for row, unit in zip(*np.nonzero(gate != 1), strict=True)
        }
        new = sorted(keys - self._changes.keys())
        if not new:
            return
        rows = np.repeat(self._open, len(new), axis=0)
        for row, (unit, value) in zip(rows, new, strict=True):
            row[unit] = value
        for key, found in zip(new, self._exact(rows), strict=True):
            self._changes[key] = found - self._start

    def _exact(self, gate: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                self._exact_of(gate[start : start + _AT_ONCE])
                for start in range(0, len(gate), _AT_ONCE)
            ]
        )
