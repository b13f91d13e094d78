"""Where the memory was that an edit took out.

Two ways to locate memory are set side by side: the units that a search finds
critical for single examples (paper, section 4.4), and the units whose incoming
weights an edit changed most. For each unit

    loss of weight = || kernel before - kernel after ||**2
                     / || kernel before ||**2      of its incoming weights.

Within each layer units are ranked by it, from 0 (least) to 1 (most), equal ones
alike. If the
edit takes out what the critical units hold, their mean rank is above one half,
which is what units drawn at random in the same layers have.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.probes.critical_units import CriticalUnits
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.statistics import bootstrap_interval, shared_ranks

CHANCE = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class LostUnits(Result):
    """Whether the units that an edit changed most are the critical ones."""

    title: ClassVar[str] = "Did the edit take out what critical units hold?"

    subsets: tuple[str, ...]  # S names of the searched examples.
    layers: tuple[str, ...]  # L names.
    lost: np.ndarray  # [L] share of the squared kernel that changed.
    subset: np.ndarray  # [N] of each searched example with critical units.
    rank: np.ndarray  # [N] mean rank of its critical units, in (0, 1].

    def rows(self) -> list[dict[str, Any]]:
        """A row for each subset, with a bootstrap interval over examples."""
        found = []
        for subset in self.subsets:
            rank = self.rank[self.subset == subset]
            if not len(rank):
                continue
            low, high = bootstrap_interval(rank, np.mean)
            found.append(
                {
                    "subset": subset,
                    "examples": len(rank),
                    "rank": float(rank.mean()),
                    "rank_low": low,
                    "rank_high": high,
                    "chance": CHANCE,
                }
            )
        return found

    def table(self) -> Table:
        """The same rows."""
        return Table(self.rows(), default=".2f")

    def sentence(self) -> str:
        """Whether critical units lost more than chance."""
        parts = []
        for row in self.rows():
            side = "more than" if row["rank_low"] > CHANCE else "about as much"
            side = "less than" if row["rank_high"] < CHANCE else side
            link = " as" if side == "about as much" else ""
            parts.append(
                f"the critical units of {row['subset']} examples lost {side}"
                f"{link} others of their layers (mean rank {row['rank']:.2f}, "
                f"95% interval {row['rank_low']:.2f} to "
                f"{row['rank_high']:.2f}; chance {CHANCE})"
            )
        most = self.layers[int(np.argmax(self.lost))]
        return (
            f"By their incoming weights, {'; '.join(parts)}. Most of its "
            f"kernel was lost by {most} ({self.lost.max():.0%})."
        )

    def figures(self) -> dict[str, Figure]:
        """How the mean ranks of examples are spread."""
        names = [row["subset"] for row in self.rows()]
        edges = np.linspace(0, 1, 11)
        figure, axes = figures.bars(
            [f"{edge:.1f}-{edge + 0.1:.1f}" for edge in edges[:-1]],
            {
                name: 100
                * np.histogram(self.rank[self.subset == name], edges)[0]
                / np.sum(self.subset == name)
                for name in names
            },
            colors=[figures.color_of(name, names) for name in names],
            width_each=0.7,
        )
        axes.set_xlabel("mean rank of an example's critical units")
        axes.set_ylabel("share of examples (%)")
        axes.legend(fontsize=8)
        return {
            "lost_units": Figure(
                "Critical units ranked by how much of their incoming weights "
                "the edit took away; one half is chance.",
                figure,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The mean rank of each subset."""
        return {
            f"rank of critical units, {row['subset']}": row["rank"]
            for row in self.rows()
        }


def compare_with_critical_units(
    before: keras.Model, after: keras.Model, critical: CriticalUnits
) -> LostUnits:
    """Ranks the critical units of examples by what an edit took from them.

    Args:
        before: the network that was searched.
        after: the same after the edit, without a refit.
        critical: of `find_critical_units(before, ...)`, by units.

    Raises:
        ValueError: a layer of the search has no kernel in the networks.

    Example:
        >>> edited, _ = remove_memory(
        ...     model, examples, CurvatureConfig(keep=0.9, refit_epochs=0)
        ... )
        >>> critical = find_critical_units(
        ...     model, examples, SearchConfig(count=4)
        ... )
        >>> lost = compare_with_critical_units(model, edited, critical)
        >>> sorted(lost.rows()[0])[0]
        'chance'
    """
    kernels = [_kernels(model) for model in (before, after)]
    ranks, lost = [], []
    for name, size in zip(critical.layers, critical.sizes, strict=True):
        if name not in kernels[0] or name not in kernels[1]:
            raise ValueError(
                f"The search gated {name}, which has no kernel in model "
                f"'{before.name}'. Expected a search with place='unit' in the "
                "network before the edit."
            )
        old, new = (part[name].reshape(-1, size) for part in kernels)
        taken = ((old - new) ** 2).sum(axis=0)
        share = taken / np.maximum((old**2).sum(axis=0), 1e-30)
        # The middle of each rank, so that their mean is one half.
        ranks.append(shared_ranks(share) - 0.5 / len(share))
        lost.append(float(taken.sum() / max((old**2).sum(), 1e-30)))
    rank = np.concatenate(ranks)
    has_any = critical.size > 0
    return LostUnits(
        subsets=critical.searched(),
        layers=critical.layers,
        lost=np.array(lost),
        subset=critical.subset[has_any],
        rank=np.array(
            [
                rank[critical.units[n, critical.critical[n]]].mean()
                for n in np.flatnonzero(has_any)
            ]
        ),
    )


def _kernels(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        layer.name: layer.kernel.numpy()
        for layer in graph.flat_layers(model)
        if getattr(layer, "kernel", None) is not None
    }
