"""How units are searched for: the config that the whole search reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tfmemloc import configs
from tfmemloc.fields import check_fields
from tfmemloc.units import rankings

Place = Literal["unit", "block", "weights"]
# The settings of the authors' code, where they are not the defaults. Their sets
# are those of `CriticalUnits.greedy_size`: no unit is put back.
PAPER_PROTOCOL: Mapping[str, Any] = {
    "place": "weights",
    "population_term": "exact",
    "perturbations": 5,
}


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How critical units are searched for (see `find_critical_units`).

    Attributes:
        ids: ids of the examples to search; None takes all noisy (atypical)
            examples and as many clean (typical) ones.
        count: maximum number of examples of each of the two subsets; None
            takes all.
        layers: names of the layers whose units may be removed; None takes all
            but those that make the logits.
        place: where a unit is gated: `unit`, its output after normalization
            and activation; `block`, the outputs of blocks; `weights`, the
            kernel's output before normalization, as the authors did.
        ranking: which unit goes first: the name of a module in
            `tfmemloc.units.rankings`; `first_order` is the paper's.
        objective: for the ranking first_order: `zero` removes the unit that
            lowers the objective most; `step` moves the gate with the largest
            gradient by 1 against it, so that a unit may also be doubled.
        population_term: for the ranking first_order: how the gradient of the
            population's mean loss is taken: `exact` (again under each example's
            own gates, at every step; slow), `cached` (once for each unit alone,
            added up, and exact where that decides; see
            `tfmemloc.units.population`), `frozen` (once, with all units on) or
            `none` (not at all).
        sureness: for the term `cached`: how many times the mean error the lead
            of a unit must be; 0 never takes the term exactly again.
        population: number of training examples, drawn by `seed`, over which
            that mean is taken.
        perturbations: number of perturbed copies of the input over which the
            logits are averaged before the example's gradient is taken; 0 takes
            the input itself. The authors took 5.
        perturbation_norm: norm of the Gaussian perturbation relative to the
            input's.
        removed_value: what a removed unit gives: `zero`, or its `mean` over
            the population.
        limit: maximum number of units to remove.
        bystanders: number of other examples of each subset, drawn by `seed`,
            on which the harm of a removal is measured; None takes all.
        inference: behaviour of tied layers; None leaves it as built (drop).
        seed: of population, bystanders, perturbations and random controls.
        memory_budget_mib: MiB for the activations of a chunk of examples.
    """

    ids: tuple[int, ...] | None = None
    count: int | None = None
    layers: tuple[str, ...] | None = None
    place: Place = "unit"
    ranking: str = "first_order"
    objective: Literal["zero", "step"] = "zero"
    population_term: Literal["frozen", "cached", "exact", "none"] = "frozen"
    sureness: float = 2.0
    population: int = 512
    perturbations: int = 0
    perturbation_norm: float = 0.01
    removed_value: Literal["zero", "mean"] = "zero"
    limit: int = 100
    bystanders: int | None = 200
    inference: configs.Inference | None = None
    seed: int = 0
    memory_budget_mib: int = 1024

    def __post_init__(self):
        check_fields(self)
        rankings.named(self.ranking)
        configs.check_range("sureness", self.sureness, 0.0, None)
        for name in ("population", "limit", "memory_budget_mib"):
            configs.check_range(name, getattr(self, name), 1, None)
        configs.check_range("perturbations", self.perturbations, 0, None)
        configs.check_range(
            "perturbation_norm", self.perturbation_norm, 0.0, None
        )
        for name in ("bystanders", "count"):
            if getattr(self, name) is not None:
                configs.check_range(name, getattr(self, name), 1, None)
