"""The search for the units without which a prediction flips.

All examples of a block are searched at the same time, each under its own gates,
or all groups of examples, each under one set of gates (see `sought`). A
ranking, which is an argument, decides in which order units are removed; for a
group its scores are the mean over the examples:

- an adaptive ranking is computed again after each removal, until the prediction
  flips or a limit is reached;
- any other ranking gives one order, and the shortest beginning of it that flips
  the prediction is found by doubling and bisection.

This set may be larger than needed. Therefore each of its units is put back if
the prediction stays flipped with it, until every unit that is left is needed.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from tfmemloc.statistics import row_ranks
from tfmemloc.units.gated_model import GatedModel, is_right
from tfmemloc.units.sought import Sought


def search(
    gated: GatedModel, sought: Sought, ranking: ModuleType
) -> dict[str, np.ndarray]:
    """Searches examples that are predicted as labelled, side by side.

    Args:
        gated: the model.
        sought: G groups of N examples.
        ranking: a module of `tfmemloc.units.rankings`, or like one.

    Returns:
        units: [G, K] in the order of removal; -1 is padding.
        gate: [G, K] what their gates became.
        critical: [G, K] the units that stayed removed.
        flipped: [G] whether the prediction, or enough of them, changed.
        prediction: [N] the class without the critical units; -1 for tokens.
        accuracy_after: [G, S] of the bystanders, those sought left out.
    """
    find = greedy if ranking.ADAPTIVE else _in_one_order
    units, values, flipped = find(gated, sought, ranking)
    critical = _needed(gated, sought, units, values, flipped)
    gate = _gate(gated, units, values, critical)
    predicted = gated.predicted(sought.examples, gate[sought.group])
    return {
        "units": units,
        "gate": values,
        "critical": critical,
        "flipped": flipped,
        "prediction": predicted
        if predicted.ndim == 1
        else np.full(len(predicted), -1),
        "accuracy_after": accuracy_after(gated, sought, gate),
    }


def nothing_found(subsets: int) -> dict[str, np.ndarray]:
    """The result of a search without examples."""
    return {
        "units": np.zeros((0, 1), np.int32),
        "gate": np.zeros((0, 1), np.float32),
        "critical": np.zeros((0, 1), bool),
        "flipped": np.zeros(0, bool),
        "prediction": np.zeros(0, np.int64),
        "accuracy_after": np.zeros((0, subsets)),
    }


def sizes_in_order(
    gated: GatedModel, sought: Sought, ranking: ModuleType
) -> np.ndarray:
    """How many units, in the order of a ranking, flip the prediction: [G].

    NaN where removing all does not flip it.
    """
    return crossing(gated, sought, _order(gated, sought, ranking))


def bystander_accuracy(gated: GatedModel) -> np.ndarray:
    """Accuracy of each subset of the bystanders, nothing removed: [S]."""
    right = gated.bystanders_right(gated.open_gates(1))[0]
    return np.array([right[member].mean() for member in _members(gated)])


def bystander_count(gated: GatedModel) -> np.ndarray:
    """How many bystanders there are of each subset: [S]."""
    return np.array([member.sum() for member in _members(gated)])


def greedy(gated, sought, ranking):
    """Removes the best unit of each group until its prediction flips.

    Returns:
        units [G, K] in the order of removal (-1 is padding), what their gates
        became [G, K], and who flipped [G].
    """
    count = len(sought)
    limit = min(gated.config.limit, gated.gates.units)
    gate = gated.open_gates(count)
    free = np.ones(gate.shape, bool)
    units = np.full((count, limit), -1, np.int32)
    values = np.ones((count, limit), np.float32)
    flipped = np.zeros(count, bool)
    active = np.arange(count)
    for step in range(limit + 1):
        part = sought.of(active)
        shared = gate[active][part.group]
        ranked = ranking.rank(gated, part.examples, shared)
        predicted = ranked.predicted
        if predicted is None:
            predicted = gated.predicted(part.examples, shared)
        done = part.has_flipped(~is_right(predicted, part.examples.label))
        flipped[active[done]] = True
        active, score = active[~done], part.mean(ranked.score)[~done]
        if step == limit or not len(active):
            break
        unit = np.where(free[active], score, -np.inf).argmax(axis=1)
        value = 0.0
        if ranked.value is not None:
            value = part.mean(ranked.value)[~done]
            value = value[np.arange(len(unit)), unit]
        units[active, step], values[active, step] = unit, value
        gate[active, unit] = value
        free[active, unit] = False
    longest = max(1, int((units >= 0).sum(axis=1).max()))
    return units[:, :longest], values[:, :longest], flipped


def _in_one_order(gated, sought, ranking):
    """The shortest beginning of an order that flips each prediction.

    Returns:
        As `greedy`.
    """
    rank = _order(gated, sought, ranking)
    size = crossing(gated, sought, rank)
    limit = min(gated.config.limit, gated.gates.units)
    flipped = size <= limit  # NaN is not.
    count = np.where(flipped, size, limit).astype(int)
    order = np.argsort(rank, axis=1)[:, : max(1, count.max(initial=1))]
    units = np.where(
        np.arange(order.shape[1]) < count[:, np.newaxis], order, -1
    ).astype(np.int32)
    values = np.where(units >= 0, 0.0, 1.0).astype(np.float32)
    return units, values, flipped


def _order(gated, sought, ranking) -> np.ndarray:
    """The place of each unit in its group's order, all units on: [G, U]."""
    examples = sought.examples
    ranked = ranking.rank(gated, examples, gated.open_gates(len(examples)))
    return row_ranks(-sought.mean(ranked.score))


def crossing(gated: GatedModel, sought: Sought, rank: np.ndarray) -> np.ndarray:
    """How many units, in an order, flip the prediction: float [G].

    By doubling and then bisection: removing the first n flips it, and the
    first n - 1 do not. NaN where removing all does not flip.

    Args:
        gated: the model.
        sought: G groups of examples.
        rank: [G, U] place of each unit in its group's order.
    """
    units = gated.gates.units
    below = np.zeros(len(sought), int)  # Removing this many does not flip it,
    above = np.full(len(sought), units + 1)  # and removing this many does.
    while True:
        doubled = np.minimum(np.maximum(2 * below, 1), units)
        middle = (below + above) // 2
        tried = np.where(above > units, doubled, middle)
        active = np.flatnonzero((above - below > 1) & (below < units))
        if not len(active):
            break
        gate = (rank[active] >= tried[active, np.newaxis]).astype(np.float32)
        flips = sought.of(active).flips(gated, gate)
        above[active[flips]] = tried[active[flips]]
        below[active[~flips]] = tried[active[~flips]]
    return np.where(above > units, np.nan, above)


def _needed(gated, sought, units, values, flipped) -> np.ndarray:
    """Puts units back, first removed first, while the flip survives.

    Repeated until a round puts nothing back.
    """
    critical = units >= 0
    while True:
        before = critical.copy()
        for k in range(units.shape[1]):
            tried = np.flatnonzero(critical[:, k] & flipped)
            if not len(tried):
                continue
            without = critical[tried].copy()
            without[:, k] = False
            gate = _gate(gated, units[tried], values[tried], without)
            survives = sought.of(tried).flips(gated, gate)
            critical[tried[survives], k] = False
        if np.array_equal(critical, before):
            return critical


def _gate(gated, units, values, chosen) -> np.ndarray:
    """Gates [N, U] with the chosen units [N, K] at their values."""
    gate = gated.open_gates(len(units))
    rows, places = np.nonzero(chosen & (units >= 0))
    gate[rows, units[rows, places]] = values[rows, places]
    return gate


def accuracy_after(
    gated: GatedModel, sought: Sought, gate: np.ndarray
) -> np.ndarray:
    """[G, S] accuracy on the bystanders, those sought left out."""
    right = gated.bystanders_right(gate)
    ids = sought.examples.example_id[:, np.newaxis]
    is_own = ids == gated.bystanders.example_id
    others = ~np.logical_or.reduceat(is_own, sought.starts, axis=0)
    return np.stack(
        [
            (right * others)[:, member].sum(axis=1)
            / np.maximum(1, others[:, member].sum(axis=1))
            for member in _members(gated)
        ],
        axis=1,
    )


def _members(gated) -> list[np.ndarray]:
    """Of each subset: which of the bystanders are in it."""
    subset = gated.bystanders.subset
    return [subset == name for name in gated.bystanders.subsets]
