"""Critical units: the smallest set of units that holds one example.

Claim (paper, section 4.4): the prediction on a memorized example depends on
about five units, the prediction on a typical example on many more. Removing
these few units costs the other examples little accuracy.

For one example i with loss l_i and a population of examples j, a unit with
gate m_u (1 is on; see `gates`) has, to first order, the score

    score_u  =  d (mean_j l_j - l_i) / d m_u

which is how much the objective  mean_j l_j - l_i  falls when the unit is
removed. The unit with the largest score is removed, again and again, until
the prediction on i flips or a limit is reached. This set may be larger than
needed. Therefore each of its units is put back if the prediction stays flipped
with it, until every unit that is left is needed.

All examples of a block are searched at the same time, each under its own gates:
one forward and one backward pass removes one unit of every example. With
the population term `frozen` the gradient of mean_j l_j is taken once, on the
whole network; `exact` takes it again for each example at each step, under
that example's gates, which costs a pass over the population each time.

Everything runs with `training=False`: BatchNorm uses its moving statistics,
and tied layers do what their `inference` says.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfmemloc import configs, storage
from tfmemloc.data.examples import Examples
from tfmemloc.probes import critical_figures
from tfmemloc.probes.search_blocks import (
    checked_examples,
    choose_ids,
    search_blocks,
)
from tfmemloc.result import Figure, Result, Row, Table, or_none
from tfmemloc.snapshots import Source, model_of
from tfmemloc.statistics import bootstrap_interval, median_or_none
from tfmemloc.subsets import OfSubsets
from tfmemloc.units import GatedModel, SearchConfig, UnitGates
from tfmemloc.units import search as searching
from tfmemloc.units.of_units import OfUnits


@dataclasses.dataclass(frozen=True, eq=False)
class CriticalUnits(OfUnits, OfSubsets, Result):
    """The few units that hold one example, for many examples (paper, 4.4).

    Units are numbered through all gated layers, input to output; `label`
    names one. K is the length of the longest greedy set.
    """

    title: ClassVar[str] = "How few units hold one example"
    renamed: ClassVar[Mapping[str, str | None]] = {
        "kept": "critical",
        "others": "bystanders",
        "own": None,
        "own_chance": None,
        "own_flips": None,
        "others_flip": None,
    }

    layers: tuple[str, ...]  # L names of the gated layers, input to output.
    subsets: tuple[str, ...]  # S names.
    place: str  # Where units were gated: unit, block or weights.
    objective: str  # zero or step.
    population_term: str  # exact, cached, frozen or none.
    limit: int  # No more units than this were removed.
    sizes: np.ndarray  # [L] units of each layer.
    example_id: np.ndarray  # [N] examples that were searched.
    subset: np.ndarray  # [N] the subset of each.
    label: np.ndarray  # [N] that was trained on; -1 for tokens.
    true_label: np.ndarray  # [N].
    skipped: np.ndarray  # ids of examples that were misclassified before.
    units: np.ndarray  # [N, K] in the order of removal; -1 is padding.
    # [N, K] what the gate became: 0 removed, 2 doubled (objective `step`).
    gate: np.ndarray
    # [N, K] whether the unit stayed removed when putting it back was tried.
    critical: np.ndarray
    flipped: np.ndarray  # [N] whether the prediction changed in the limit.
    prediction: np.ndarray  # [N] the class without the critical units.
    # [N] number of units, in a random order and by falling activation, whose
    # removal changes the prediction; NaN if the removal of all does not.
    random_size: np.ndarray
    activation_size: np.ndarray
    # [N, S] accuracy on other examples without the critical units.
    accuracy_after: np.ndarray
    baseline: np.ndarray  # [S] accuracy on the same others, nothing removed.
    bystanders: np.ndarray  # [S] how many these other examples are.
    ranking: str = "first_order"  # Which unit goes first.

    @property
    def greedy_size(self) -> np.ndarray:
        """[N] units that the greedy search removed."""
        return (self.units >= 0).sum(axis=1)

    @property
    def size(self) -> np.ndarray:
        """[N] units of the reported set: those that stayed removed."""
        return self.critical.sum(axis=1)

    def searched(self) -> tuple[str, ...]:
        """The subsets of the searched examples."""
        return tuple(s for s in self.subsets if np.any(self.subset == s))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each example that was searched."""
        greedy, size = self.greedy_size, self.size
        return [
            {
                "example_id": int(self.example_id[n]),
                "subset": str(self.subset[n]),
                "label": int(self.label[n]),
                "true_label": int(self.true_label[n]),
                "prediction": int(self.prediction[n]),
                "flipped": bool(self.flipped[n]),
                "greedy_size": int(greedy[n]),
                "size": int(size[n]),
                "random_size": or_none(self.random_size[n]),
                "activation_size": or_none(self.activation_size[n]),
                "units": " ".join(
                    self.label_of(unit)
                    for unit in self.units[n, self.critical[n]]
                ),
                **{
                    f"{subset}_after": float(self.accuracy_after[n, s])
                    for s, subset in enumerate(self.subsets)
                },
            }
            for n in range(len(self.example_id))
        ]

    def by_subset(self) -> list[dict[str, Any]]:
        """A row for each subset: how many units, and what they cost."""
        return [self._summary(subset) for subset in self.searched()]

    def table(self) -> Table:
        """The same, with the interval beside the median."""
        return critical_table(self.by_subset())

    def sentence(self) -> str:
        """How large the sets are, and what their removal costs."""
        rows = self.by_subset()
        if not rows:
            return (
                f"All {len(self.skipped)} examples were misclassified from "
                "the start, so that there was no prediction to flip."
            )
        return " ".join(
            [self._sizes_in_words(rows), self._harm_in_words(rows[-1])]
        )

    def _sizes_in_words(self, rows) -> str:
        sizes = " and ".join(
            f"{row['median']:g} units ({row['subset']})" for row in rows
        )
        text = (
            "The median of the smallest sets found is "
            f"{sizes}, with 95% bootstrap intervals in brackets; greedy is "
            "the size before needless units were put back."
        )
        unflipped = int((~self.flipped).sum())
        if unflipped:
            text += f" {unflipped} predictions had not flipped at the limit."
        if len(self.skipped):
            text += (
                f" {len(self.skipped)} examples were misclassified from the "
                "start and were skipped."
            )
        return text

    def _harm_in_words(self, last) -> str:
        shared = self.sharing()[-1]
        return (
            f"The {last['subset']} examples' sets are of {shared['distinct']} "
            f"different units; the most frequent, {shared['top_unit']}, is in "
            f"{shared['top_share']:.1%} of them. After the removal of one "
            f"{last['subset']} example's set the network is right, on "
            f"average, on {self.harm_in_words(last)}."
        )

    def figures(self) -> dict[str, Figure]:
        """Sizes against controls, harm to others, and places."""
        if not self.searched():
            return {}
        return {
            "critical_sizes": Figure(
                "Cumulative distribution of the number of units whose removal "
                "flips a prediction: critical ones, and two controls.",
                critical_figures.sizes(self),
            ),
            "critical_harm": Figure(
                "Accuracy on other examples after the critical set of one "
                "example was removed.",
                critical_figures.harm(self),
            ),
            "critical_layers": Figure(
                "Where the critical units are.", critical_figures.layers(self)
            ),
        }

    def key_numbers(self) -> dict[str, float]:
        """The median set of each subset."""
        return {
            f"median critical set, {row['subset']}": row["median"]
            for row in self.by_subset()
        }

    def _summary(self, subset: str) -> dict[str, Any]:
        mine = self.subset == subset
        size = self.size[mine]
        low, high = bootstrap_interval(size, np.median)
        is_class = bool((self.prediction[mine] >= 0).all())
        to_true = self.prediction[mine] == self.true_label[mine]
        return {
            "subset": subset,
            "examples": int(mine.sum()),
            "flipped": int(self.flipped[mine].sum()),
            "median": float(np.median(size)),
            "median_low": low,
            "median_high": high,
            "mean": float(size.mean()),
            "q25": float(np.quantile(size, 0.25)),
            "q75": float(np.quantile(size, 0.75)),
            "q95": float(np.quantile(size, 0.95)),
            "greedy": float(np.median(self.greedy_size[mine])),
            "random": median_or_none(self.random_size[mine]),
            "by_activation": median_or_none(self.activation_size[mine]),
            "to_true_label": float(to_true.mean()) if is_class else None,
            **{
                f"{name}_after": float(self.accuracy_after[mine, s].mean())
                for s, name in enumerate(self.subsets)
            },
        }

    def layer_shares(self) -> dict[str, np.ndarray]:
        """Subset -> [L] share of its critical units in each layer."""
        shares = {}
        for subset in self.searched():
            mine = self.subset == subset
            units = self.units[mine][self.critical[mine]]
            count = np.bincount(
                self.layer_of(units), minlength=len(self.layers)
            )
            shares[subset] = count / max(1, len(units))
        return shares

    def sharing(self) -> list[dict[str, Any]]:
        """A row for each subset: are the sets the same units again and again?

        `distinct` units occur in any set, `shared` of them in more than one;
        `top_unit` occurs in the share `top_share` of the sets.
        """
        rows = []
        for subset in self.searched():
            mine = self.subset == subset
            count = np.bincount(
                self.units[mine][self.critical[mine]],
                minlength=self.sizes.sum(),
            )
            rows.append(
                {
                    "subset": subset,
                    "units": int(count.sum()),
                    "distinct": int((count > 0).sum()),
                    "shared": int((count > 1).sum()),
                    "top_unit": self.label_of(int(count.argmax())),
                    "top_share": float(count.max() / mine.sum()),
                }
            )
        return rows


def critical_table(rows: Sequence[Row]) -> Table:
    """The rows of `CriticalUnits.by_subset`, for people."""
    shown = [
        {
            "subset": row["subset"],
            "examples": row["examples"],
            "flipped": row["flipped"],
            "median": f"{row['median']:g} "
            f"[{row['median_low']:g}, {row['median_high']:g}]",
            "mean": row["mean"],
            "greedy": row["greedy"],
            "random": row["random"],
            "by_activation": row["by_activation"],
            "to_true_label": row["to_true_label"],
            **{
                name: value
                for name, value in row.items()
                if name.endswith("_after")
            },
        }
        for row in rows
    ]
    counts = ("mean", "greedy", "random", "by_activation")
    return Table(shown, dict.fromkeys(counts, ".3g"))


def find_critical_units(
    source: Source,
    examples: Examples,
    config: SearchConfig = SearchConfig(),
    *,
    directory: str | os.PathLike | None = None,
    progress: bool = True,
) -> CriticalUnits:
    """Finds the few units whose removal flips each example's prediction.

    Args:
        source: a run whose model can be rebuilt, or any functional model; it
            is not changed.
        examples: all the data, among them the examples to search, the
            population and the bystanders.
        config: which examples and units, and how.
        directory: where finished blocks of examples are kept, so that a
            killed search goes on there. None keeps nothing.
        progress: show a progress bar.

    Returns:
        For each example, in the order of `config.ids`, its units and what
        their removal did. Examples that are misclassified from the start are
        listed in `skipped`.

    Raises:
        ValueError: an id is not in the data or is given twice, a layer has no
            units, the model's graph is not known, or `directory` holds a
            search with other settings.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> config = SearchConfig(count=4, bystanders=20)
        >>> result = find_critical_units(run, run.examples(), config)
        >>> result.size.shape == result.example_id.shape
        True
    """
    model = model_of(source, examples, config.inference)
    ids = config.ids
    if ids is None:
        ids = choose_ids(examples, count=config.count, seed=config.seed)
    wanted = checked_examples(examples, ids)
    gates = UnitGates(model, layers=config.layers, place=config.place)
    gated = GatedModel(model, gates, examples, config)
    right = gated.is_right(wanted)
    searched = wanted.take(right)
    finished = storage.Parts(
        directory,
        {
            "search": _identity(config),
            "layers": list(gates.names),
            "weights": storage.digest(model.get_weights()),
            "examples": storage.digest([searched.example_id, searched.label])
            + examples.inputs_digest(),
        },
        "search",
    )
    columns = search_blocks(gated, searched, config, finished, progress)
    is_class = searched.label.ndim == 1
    nothing = np.full(len(searched), -1)
    return CriticalUnits(
        layers=gates.names,
        subsets=examples.subsets,
        place=config.place,
        objective=config.objective,
        population_term=config.population_term,
        limit=config.limit,
        ranking=config.ranking,
        sizes=gates.sizes,
        example_id=searched.example_id,
        subset=searched.subset,
        label=searched.label if is_class else nothing,
        true_label=searched.true_label if is_class else nothing,
        skipped=wanted.example_id[~right],
        baseline=searching.bystander_accuracy(gated),
        bystanders=searching.bystander_count(gated),
        **columns,
    )


def _identity(config: SearchConfig) -> dict[str, Any]:
    """The settings that identify a search, apart from examples and layers."""
    fields = configs.to_json(config)
    for name in ("ids", "count", "layers", "memory_budget_mib"):
        del fields[name]
    return fields
