"""Critical units of a group: the smallest set that flips a class of labels.

Wrong labels of one class may hang on units that they share. Where
`find_critical_units` asks for the units of one example, this asks for the few
units whose removal changes the predictions of a whole group at the same time:
all wrong labels that were given to one class, say. The score of a unit is the
mean of its scores for the examples of the group that are still predicted as
labelled; units are removed until enough of the group has changed, and put back
where they were not needed.

Controls: as many ordinary examples with the same label, whose predictions rest
on what the class has in common; and units in a random order and by activation.

The search is that of `tfmemloc.units.search`, with one set of gates for each
group and all groups side by side.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from tfmemloc import configs
from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.probes import group_figures
from tfmemloc.result import Figure, Result, Table, or_none
from tfmemloc.snapshots import Source, model_of
from tfmemloc.statistics import median_or_none
from tfmemloc.subsets import OfSubsets
from tfmemloc.units import GatedModel, SearchConfig, UnitGates, drawn, rankings
from tfmemloc.units import search as searching
from tfmemloc.units.of_units import OfUnits
from tfmemloc.units.sought import Sought


@dataclasses.dataclass(frozen=True)
class GroupSearchConfig:
    """Which groups are searched, and how (see `find_group_units`).

    Attributes:
        by: what the examples of a group share: `label`, as it was given;
            `true_label`; or `group`.
        share: of a group's examples whose prediction has to change.
        count: examples of a group, at most, drawn by `seed`; None takes all.
        layers: names of the layers whose units may be removed; None takes all
            but those that make the logits.
        ranking: which unit goes first: the name of a module in
            `tfmemloc.units.rankings`.
        population_term: for the ranking first_order: how the gradient of the
            population's mean loss is taken: `exact` (again under each group's
            own gates, at every step), `frozen` (once, with all units on) or
            `none` (not at all).
        population: number of training examples over which the population's
            mean loss is taken.
        limit: maximum number of units to remove.
        bystanders: number of other examples of each subset on which the harm
            of a removal is measured; None takes all.
        inference: behaviour of tied layers; None leaves it as built (drop).
        seed: of what is drawn.
        memory_budget_mib: MiB for the activations of a chunk of examples.
    """

    by: Literal["label", "true_label", "group"] = "label"
    share: float = 1.0
    count: int | None = None
    layers: tuple[str, ...] | None = None
    ranking: str = "first_order"
    population_term: Literal["exact", "frozen", "none"] = "exact"
    population: int = 512
    limit: int = 200
    bystanders: int | None = 200
    inference: configs.Inference | None = None
    seed: int = 0
    memory_budget_mib: int = 1024

    def __post_init__(self):
        check_fields(self)
        check_range("share", self.share, 1e-6, 1.0)
        if self.count is not None:
            check_range("count", self.count, 1, None)
        self.search()  # Checks what is left.

    def search(self) -> SearchConfig:
        """The same for the search of single examples."""
        names = {field.name for field in dataclasses.fields(SearchConfig)}
        return SearchConfig(
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(self)
                if field.name in names - {"count"}
            }
        )


@dataclasses.dataclass(frozen=True, eq=False)
class GroupUnits(OfUnits, OfSubsets, Result):
    """The few units that hold a group of labels, for many groups.

    G groups; K is the length of the longest greedy set.
    """

    title: ClassVar[str] = "How few units hold a group of labels"

    layers: tuple[str, ...]  # L names of the gated layers, input to output.
    sizes: np.ndarray  # [L] units of each layer.
    subsets: tuple[str, ...]  # S names.
    by: str  # What the examples of a group share.
    share: float  # Of a group whose prediction had to change.
    limit: int  # No more units than this were removed.
    ranking: str  # Which unit goes first.
    group: tuple[str, ...]  # [G] what they share.
    subset: tuple[str, ...]  # [G] the subset of a group's examples.
    examples: np.ndarray  # [G] how many were searched.
    skipped: np.ndarray  # [G] not predicted as labelled from the start.
    units: np.ndarray  # [G, K] in the order of removal; -1 is padding.
    critical: np.ndarray  # [G, K] whether a unit stayed removed.
    flipped: np.ndarray  # [G] whether enough predictions changed.
    left: np.ndarray  # [G] share still predicted as labelled, without them.
    to_true_label: np.ndarray  # [G] share then predicted as its true label.
    random_size: np.ndarray  # [G] units in a random order; NaN if none do.
    activation_size: np.ndarray  # [G] by falling activation; NaN if none do.
    # [G, S] accuracy on examples outside of the group without the units.
    accuracy_after: np.ndarray
    baseline: np.ndarray  # [S] the same, nothing removed.
    bystanders: np.ndarray  # [S] how many these other examples are.

    @property
    def size(self) -> np.ndarray:
        """[G] units of the reported set: those that stayed removed."""
        return self.critical.sum(axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each group that was searched."""
        return [
            {
                "group": self.group[g],
                "subset": self.subset[g],
                "examples": int(self.examples[g]),
                "flipped": bool(self.flipped[g]),
                "size": int(self.size[g]),
                "greedy_size": int((self.units[g] >= 0).sum()),
                "random_size": or_none(self.random_size[g]),
                "activation_size": or_none(self.activation_size[g]),
                "left": float(self.left[g]),
                "to_true_label": float(self.to_true_label[g]),
                **{
                    f"{subset}_after": float(self.accuracy_after[g, s])
                    for s, subset in enumerate(self.subsets)
                },
                "units": " ".join(
                    self.label_of(unit)
                    for unit in self.units[g, self.critical[g]]
                ),
            }
            for g in range(len(self.group))
        ]

    def by_subset(self) -> list[dict[str, Any]]:
        """A row for each subset: medians of the sets, means of the rest."""
        return [
            {
                "subset": subset,
                "groups": int(mine.sum()),
                "examples": int(self.examples[mine].sum()),
                "flipped": int(self.flipped[mine].sum()),
                "size": float(np.median(self.size[mine])),
                "random_size": median_or_none(self.random_size[mine]),
                "activation_size": median_or_none(self.activation_size[mine]),
                "to_true_label": float(self.to_true_label[mine].mean()),
                **{
                    f"{name}_after": float(self.accuracy_after[mine, s].mean())
                    for s, name in enumerate(self.subsets)
                },
            }
            for subset in dict.fromkeys(self.subset)
            for mine in [self.is_of(subset)]
        ]

    def table(self) -> Table:
        """The rows, without the names of the units."""
        counts = ("size", "greedy_size", "random_size", "activation_size")
        return Table(
            [
                {name: v for name, v in row.items() if name != "units"}
                for row in self.rows()
            ],
            dict.fromkeys(counts, ".3g"),
        )

    def sentence(self) -> str:
        """How large the sets are, and what their removal costs."""
        rows = self.by_subset()
        sizes = " and ".join(
            f"{row['size']:g} units ({row['subset']}, {row['groups']} groups)"
            for row in rows
        )
        text = (
            f"The median set whose removal flips {self.share:.0%} of a group "
            f"with the same {self.by} is {sizes}."
        )
        unflipped = int((~self.flipped).sum())
        if unflipped:
            text += (
                f" {unflipped} groups had not flipped at the limit of "
                f"{self.limit} units."
            )
        return (
            f"{text} Without the set of a {self.memorized} group the network "
            f"is right, on average, on {self.harm_in_words(rows[0])}, the "
            "group left out."
        )

    def figures(self) -> dict[str, Figure]:
        """Sizes of the sets by group, and what else goes with them."""
        return {
            "group_units": Figure(
                "How many units hold each group, with controls, and the "
                f"accuracy on all others without those of a {self.memorized} "
                "group (dotted: nothing removed).",
                group_figures.sizes_and_harm(self),
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The median set of each subset's groups."""
        return {
            f"median set of a group, {row['subset']}": row["size"]
            for row in self.by_subset()
        }

    def is_of(self, subset: str) -> np.ndarray:
        """[G] whether a group's examples are of this subset."""
        return np.array(self.subset) == subset


def find_group_units(
    source: Source,
    examples: Examples,
    config: GroupSearchConfig = GroupSearchConfig(),
) -> GroupUnits:
    """Finds the few units whose removal flips a whole group of predictions.

    Args:
        source: a run whose model can be rebuilt, or any functional model; it
            is not changed.
        examples: all the data, some of them `noisy` or `atypical`; classes,
            not tokens.
        config: which groups, and how.

    Returns:
        For each group, memorized ones first, its units and what their removal
        did.

    Raises:
        ValueError: nothing is memorized, labels are tokens, there are no
            groups, or the network predicts none of the labels.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> config = GroupSearchConfig(share=0.9, limit=20, bystanders=20)
        >>> result = find_group_units(run, run.examples(), config)
        >>> len(result.group) == len(result.size)
        True
    """
    model = model_of(source, examples, config.inference)
    _check(examples, config)
    gates = UnitGates(model, layers=config.layers)
    gated = GatedModel(model, gates, examples, config.search())
    wanted = _groups(examples, config)
    right = gated.is_right(wanted.examples)
    known = np.unique(wanted.group[right])
    if not right[wanted.examples.subset == examples.memorized].any():
        raise ValueError(
            f"The network predicts none of the {examples.memorized} labels of "
            f"{examples.name}. Expected some that it memorized."
        )
    sought = dataclasses.replace(
        wanted,
        examples=wanted.examples.take(right),
        group=np.searchsorted(known, wanted.group[right]),
    )
    found = searching.search(gated, sought, rankings.named(config.ranking))
    members, first = sought.examples, sought.starts
    return GroupUnits(
        layers=gates.names,
        sizes=gates.sizes,
        subsets=examples.subsets,
        by=config.by,
        share=config.share,
        limit=config.limit,
        ranking=config.ranking,
        group=tuple(str(v) for v in getattr(members, config.by)[first]),
        subset=tuple(str(name) for name in members.subset[first]),
        examples=np.bincount(sought.group),
        skipped=np.bincount(wanted.group[~right], minlength=len(wanted))[known],
        **{name: found[name] for name in ("units", "critical", "flipped")},
        left=sought.mean((found["prediction"] == members.label).astype(float)),
        to_true_label=sought.mean(
            (found["prediction"] == members.true_label).astype(float)
        ),
        random_size=searching.sizes_in_order(
            gated, sought, rankings.named("random")
        ),
        activation_size=searching.sizes_in_order(
            gated, sought, rankings.named("activations")
        ),
        accuracy_after=found["accuracy_after"],
        baseline=searching.bystander_accuracy(gated),
        bystanders=searching.bystander_count(gated),
    )


def _check(examples: Examples, config: GroupSearchConfig) -> None:
    if examples.task != "classes":
        raise ValueError(
            f"{examples.name} has labels of shape {examples.label.shape}. "
            "Expected one class for each example, by which they are grouped."
        )
    if examples.memorized is None:
        raise ValueError(
            f"{examples.name} has no noisy or atypical examples. Expected "
            "some, of which groups are made. Received the subsets "
            f"{', '.join(examples.subsets)}."
        )
    if getattr(examples, config.by) is None:
        raise ValueError(
            f"{examples.name} has no groups. Expected examples made with "
            "from_arrays(..., group=...), or another `by`."
        )


def _groups(examples: Examples, config: GroupSearchConfig) -> Sought:
    """The memorized groups, and ordinary ones that are alike and as large."""
    parts: list[np.ndarray] = []
    memorized = examples.of_subset(examples.memorized)
    ordinary = (
        examples.of_subset(examples.ordinary) if examples.ordinary else None
    )
    values = np.unique(getattr(memorized, config.by))
    counts = []
    for value in values:
        ids = _drawn_of(memorized, value, config.count, config)
        counts.append(len(ids))
        parts.append(ids)
    if ordinary is not None:
        for value, count in zip(values, counts, strict=True):
            parts.append(_drawn_of(ordinary, value, count, config))
    parts = [ids for ids in parts if len(ids)]
    return Sought(
        examples.of_ids(np.concatenate(parts)),
        np.repeat(np.arange(len(parts)), [len(ids) for ids in parts]),
        config.share,
    )


def _drawn_of(examples, value, count, config) -> np.ndarray:
    """The ids of a group, at most so many of them."""
    ids = examples.example_id[getattr(examples, config.by) == value]
    return drawn(
        ids, len(ids) if count is None else count, config.seed, "group"
    )
