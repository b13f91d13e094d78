"""Deleting what a ranking finds: does the memory go, and what else does?

For each naturally memorized example (one with a wrong label that the network
predicts) the first share k of each layer, in the order of a ranking, is removed
at the same time:

    own        its own wrong label is still predicted       wanted small
    memorized  accuracy on other memorized examples         wanted large
    ordinary   accuracy on the rest of the training set     wanted large

Where `find_planted` asks who finds units that are known to hold a memory, this
asks whose units are worth removing, and needs no truth.

Reference: the DEL benchmark of Chang, Thomason and Jia, "Do Localization
Methods Actually Localize Memorized Data in LLMs?", NAACL 2024.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from tqdm import auto as tqdm

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.probes.critical_units import choose_ids
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table, or_none
from tfmemloc.snapshots import Source, model_of
from tfmemloc.units import rankings
from tfmemloc.units.config import SearchConfig
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.gates import UnitGates
from tfmemloc.units.ranks import first_of_layers
from tfmemloc.units.search import accuracy_after, bystander_accuracy
from tfmemloc.units.sought import Sought

_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class DeletionConfig:
    """What is removed, and in whose order.

    Attributes:
        rankings: names of modules in `tfmemloc.units.rankings`.
        shares: first shares k of each layer that are removed.
        count: memorized examples, at most.
        bystanders: other examples of each subset.
        population: training examples that stand for all others.
        layers: names of the layers whose units may be removed; None takes all
            but those that make the logits.
        seed: of what is drawn.
    """

    rankings: tuple[str, ...] = (
        *("random", "activations", "zero_out", "first_order"),
        *("integrated_gradients", "slimming", "hard_concrete"),
        *("own_curvature", "own_projection"),
    )
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    count: int = 64
    bystanders: int = 200
    population: int = 512
    layers: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        for name in self.rankings:
            rankings.named(name)
        for share in self.shares:
            check_range("shares", share, 1e-6, 1.0)
        for name in ("count", "bystanders", "population"):
            check_range(name, getattr(self, name), 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Deletion(Result):
    """What the removal of units changes, by ranking and share."""

    title: ClassVar[str] = "What goes with the units that a ranking names?"

    rankings: tuple[str, ...]  # R names.
    shares: np.ndarray  # [K] of each layer.
    subset: str  # Of the memorized examples.
    examples: int  # N of them.
    own: np.ndarray  # [R, K] share whose label is still predicted.
    memorized: np.ndarray  # [R, K] accuracy on other memorized examples.
    ordinary: np.ndarray  # [R, K] accuracy on the rest; NaN if none.
    before: np.ndarray  # [2] accuracy on memorized and ordinary, all units on.

    @property
    def selectivity(self) -> np.ndarray:
        """[R]: mean over shares of how much more goes of the example itself.

        1 - own, less what other memorized examples lose.
        """
        lost = self.before[0] - self.memorized
        return ((1 - self.own) - lost).mean(axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each ranking and share."""
        return [
            {
                "ranking": ranking,
                "k": float(share),
                "own": float(self.own[r, k]),
                "memorized": or_none(self.memorized[r, k]),
                "ordinary": or_none(self.ordinary[r, k]),
                "examples": self.examples,
            }
            for r, ranking in enumerate(self.rankings)
            for k, share in enumerate(self.shares)
        ]

    def sentence(self) -> str:
        """The ranking whose units belong most to their example alone."""
        best = int(np.argmax(self.selectivity))
        k = int(np.argmin(self.own[best] - self.memorized[best]))
        return (
            f"Without the first {self.shares[k]:.0%} of each layer in the "
            f"order of {self.rankings[best]}, {self.own[best, k]:.1%} of "
            f"{self.examples} {self.subset} labels are still predicted, of the "
            f"other {self.subset} ones {self.memorized[best, k]:.1%} (with all "
            f"units {self.before[0]:.1%})."
        )

    def figures(self) -> dict[str, Figure]:
        """Own accuracy against that of other memorized examples."""
        drawing, (axes,) = figures.side_by_side(
            f"other {self.subset} labels predicted (%)",
            ["own label predicted (%)"],
        )
        for r, ranking in enumerate(self.rankings):
            axes.plot(
                100 * self.memorized[r],
                100 * self.own[r],
                label=ranking,
                **figures.series(r),
                linestyle="-" if r < len(figures.SERIES) else "--",
            )
        axes.legend(fontsize=7)
        return {
            "deletion": Figure(
                "Each line is a ranking, each mark a share of the layers that "
                "is removed; the lower right corner is wanted.",
                drawing,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The selectivity of each ranking."""
        return {
            f"{ranking}: selectivity": float(value)
            for ranking, value in zip(
                self.rankings, self.selectivity, strict=True
            )
        }

    def table(self) -> Table:
        """The rows, in percent."""
        rows = [{**row, "k": f"{row['k']:.0%}"} for row in self.rows()]
        return Table(rows)


def delete_units(
    source: Source,
    examples: Examples,
    config: DeletionConfig = DeletionConfig(),
    *,
    progress: bool = False,
) -> Deletion:
    """Removes, for memorized examples, the units that rankings name.

    Args:
        source: a run or a functional model; it is not changed.
        examples: some of them `noisy` or `atypical`.
        config: what is removed.
        progress: show a progress bar.

    Raises:
        ValueError: nothing is memorized, or the network predicts none of it.

    Example:
        >>> config = DeletionConfig(
        ...     rankings=("random", "first_order"), count=4, bystanders=8
        ... )
        >>> run = Run.open("runs/demo/standard")
        >>> delete_units(run, run.examples(), config).own.shape
        (2, 4)
    """
    model = model_of(source, examples)
    subset = examples.memorized
    if subset is None:
        raise ValueError(
            f"{examples.name} expected a subset of memorized examples, noisy "
            f"or atypical. Received: {', '.join(examples.subsets)}."
        )
    gates = UnitGates(model, layers=config.layers)
    ids = choose_ids(examples, count=config.count, seed=config.seed)
    wanted = examples.of_ids(ids).of_subset(subset)
    gated = GatedModel(
        model,
        gates,
        examples,
        SearchConfig(
            ranking=rankings.shared(config.rankings),
            population=config.population,
            bystanders=config.bystanders,
            seed=config.seed,
        ),
    )
    known = wanted.take(gated.is_right(wanted))
    if not len(known):
        raise ValueError(
            f"The network predicts none of {len(wanted)} {subset} labels "
            "of which something could be deleted. Expected some."
        )
    found = [
        _deleted(gated, name, known, config)
        for name in tqdm.tqdm(
            config.rankings,
            desc="rankings",
            unit="ranking",
            disable=not progress,
        )
    ]
    own, after = (np.stack(column) for column in zip(*found, strict=True))
    subsets = list(examples.subsets)
    ordinary = examples.ordinary
    place = [subsets.index(subset)]
    place.append(subsets.index(ordinary) if ordinary else place[0])
    before = bystander_accuracy(gated)[place]
    memorized, others = after[..., place[0]], after[..., place[1]]
    return Deletion(
        rankings=config.rankings,
        shares=np.array(config.shares),
        subset=subset,
        examples=len(known),
        own=own,
        memorized=memorized,
        ordinary=others if ordinary else np.full_like(others, np.nan),
        before=before,
    )


def _deleted(gated: GatedModel, name: str, known: Examples, config):
    """(own [K], accuracy of each subset of bystanders [K, S])."""
    own, after = [], []
    scores = [
        rankings.named(name)
        .rank(gated, part, gated.open_gates(len(part)))
        .score
        for part in (
            known.take(np.arange(start, min(start + _BLOCK, len(known))))
            for start in range(0, len(known), _BLOCK)
        )
    ]
    score = np.concatenate(scores)
    for share in config.shares:
        gone = first_of_layers(score, gated.gates, share)
        gate = (~gone).astype(np.float32)
        own.append(gated.is_right(known, gate).mean())
        after.append(
            accuracy_after(gated, Sought.single(known), gate).mean(axis=0)
        )
    return np.array(own), np.array(after)
