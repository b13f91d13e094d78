"""Localization with a known truth: a memory that was put into chosen units.

Whether a ranking finds *the* units that hold a memory can be judged only where
one knows them. For each item (an example with a wrong label, or a window of
text that begins with a new secret, which the network does not know):

1. a share r of all units is drawn by (seed, item);
2. their *outgoing weights* alone are trained on the item (Adam, at most
   `steps`) until its loss is below `loss`; all else stays as it was, bit for
   bit;
3. each ranking orders the units of this network for the item, and

       Recall@k  =  drawn units among the first k of each layer / drawn units

   with at least one unit of each layer. By chance it is k, or a little more
   where layers are small; a perfect ranking does not reach 1 where a layer
   holds more drawn units than its share k has places (`possible`).

The network is as before after each item. Rankings that compare with a
population take its curvature from the network before the injection.

Reference: the INJ benchmark of Chang, Thomason and Jia, "Do Localization
Methods Actually Localize Memorized Data in LLMs?", NAACL 2024, on GPT-2.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, ClassVar

import numpy as np
from tqdm import auto as tqdm

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.probes.planting import Planting, PlantingConfig, draw_items
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.snapshots import Source, model_of
from tfmemloc.statistics import bootstrap_interval
from tfmemloc.units import rankings
from tfmemloc.units.config import SearchConfig
from tfmemloc.units.gated_model import GatedModel
from tfmemloc.units.gates import UnitGates
from tfmemloc.units.ranks import first_of_layers, ranks_within

# A batch of one crashes some kernels of some CPUs; the mean is the same.
_COPIES = 2
_RANKINGS = (
    "random",
    "activations",
    "zero_out",
    "first_order",
    "integrated_gradients",
    "slimming",
    "hard_concrete",
    "own_curvature",
    "own_projection",
)


@dataclasses.dataclass(frozen=True)
class InjectionConfig(PlantingConfig):
    """What is planted, and who looks for it.

    Attributes:
        rankings: names of modules in `tfmemloc.units.rankings`.
        shares: first shares k of each layer, of which recall is measured.
        population: training examples that stand for all others.
    """

    rankings: tuple[str, ...] = _RANKINGS
    shares: tuple[float, ...] = (0.01, 0.02, 0.05)
    population: int = 512

    def __post_init__(self):
        super().__post_init__()
        for name in self.rankings:
            rankings.named(name)
        for share in self.shares:
            check_range("shares", share, 1e-6, 1.0)
        check_range("population", self.population, 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Injection(Result):
    """Which rankings find the units into which a memory was put."""

    title: ClassVar[str] = "Which ranking finds a memory that was planted?"

    model: str  # The network.
    rankings: tuple[str, ...]  # R names.
    ratio: float  # Of all units, those that hold an item.
    shares: np.ndarray  # [K] first shares of each layer.
    sizes: np.ndarray  # [L] units of each layer.
    recall: np.ndarray  # [R, K, N] in [0, 1], by layer.
    overall: np.ndarray  # [R, K, N] in the first k of all layers together.
    possible: np.ndarray  # [K, N] recall of a perfect ranking, by layer.
    seconds: np.ndarray  # [R, N] of the ranking of an item.
    steps: np.ndarray  # [N] of training until an item was known.
    not_learned: int  # Items that stayed unknown; they are left out.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each ranking and share."""
        rows = []
        for r, ranking in enumerate(self.rankings):
            for k, share in enumerate(self.shares):
                values = self.recall[r, k]
                low, high = bootstrap_interval(values, np.mean)
                rows.append(
                    {
                        "model": self.model,
                        "ranking": ranking,
                        "ratio": float(self.ratio),
                        "k": float(share),
                        "recall": float(values.mean()),
                        "low": low,
                        "high": high,
                        "items": len(values),
                        "possible": float(self.possible[k].mean()),
                        "overall": float(self.overall[r, k].mean()),
                        "seconds": float(np.median(self.seconds[r])),
                    }
                )
        return rows

    def table(self) -> Table:
        """A row for each ranking, the best first."""
        rows = []
        for r in np.argsort(-self.recall.mean(axis=(1, 2)), kind="stable"):
            row: dict[str, Any] = {"ranking": self.rankings[r]}
            for k, share in enumerate(self.shares):
                row[f"recall@{share:.0%}"] = float(self.recall[r, k].mean())
            row["seconds an item"] = float(np.median(self.seconds[r]))
            rows.append(row)
        perfect: dict[str, Any] = {"ranking": "(possible)"}
        for k, share in enumerate(self.shares):
            perfect[f"recall@{share:.0%}"] = float(self.possible[k].mean())
        rows.append({**perfect, "seconds an item": None})
        return Table(rows, formats={"seconds an item": ".2f"})

    def sentence(self) -> str:
        """The best ranking, and how sure that is."""
        means = self.recall.mean(axis=(1, 2))
        order = np.argsort(-means, kind="stable")
        best = order[0]
        k = len(self.shares) - 1
        low, high = bootstrap_interval(self.recall[best, k], np.mean)
        text = (
            f"{self.rankings[best]} finds {self.recall[best, k].mean():.1%} "
            f"[{low:.1%}, {high:.1%}] of the units that hold an item in the "
            f"first {self.shares[k]:.0%} of each layer; {len(self.steps)} "
            f"items, each in {self.ratio:.1%} of {self.sizes.sum()} units."
        )
        if len(order) > 1:
            second = order[1]
            text += (
                f" Next is {self.rankings[second]} with "
                f"{self.recall[second, k].mean():.1%}."
            )
        if self.not_learned:
            text += f" {self.not_learned} items could not be planted."
        return text

    def figures(self) -> dict[str, Figure]:
        """Recall by share of the layers."""
        drawing, (axes,) = figures.side_by_side(
            "first share of each layer (%)", ["recall (%)"]
        )
        for r, ranking in enumerate(self.rankings):
            axes.plot(
                100 * self.shares,
                100 * self.recall[r].mean(axis=1),
                label=ranking,
                **figures.series(r),
                linestyle="-" if r < len(figures.SERIES) else "--",
            )
        axes.set_ylim(0, 103)
        axes.legend(fontsize=7)
        return {
            "injection": Figure(
                "Units that hold a planted item among the first of each layer.",
                drawing,
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """Recall of each ranking at each share."""
        return {
            f"{row['ranking']}: recall@{row['k']:.0%}": row["recall"]
            for row in self.rows()
        }


def find_planted(
    source: Source,
    examples: Examples,
    config: InjectionConfig = InjectionConfig(),
    *,
    progress: bool = False,
) -> Injection:
    """Plants memories in known units and asks rankings to find them.

    Args:
        source: a run or a functional model; it is as before afterwards.
        examples: of `config.subset` come the items; the training examples are
            the population.
        config: what is planted.
        progress: show a progress bar.

    Raises:
        ValueError: there are too few examples, no layer's outgoing weights
            are known, or no item was learned.

    Example:
        >>> config = InjectionConfig(
        ...     rankings=("first_order",), items=2, ratio=0.2
        ... )
        >>> found = find_planted(model, examples, config)
        >>> found.recall.shape
        (1, 3, 2)
    """
    model = model_of(source, examples)
    items = draw_items(examples, config)
    place = Planting(model, config)
    gated = GatedModel(
        model,
        place.gates,
        examples,
        SearchConfig(
            ranking=rankings.shared(config.rankings),
            layers=place.gates.names,
            population=config.population,
            bystanders=1,
            seed=config.seed,
        ),
    )
    if "own_curvature" in config.rankings:
        # Of the network as it is before anything is planted.
        _ = gated.population_squares
    recall, overall, possible, seconds, steps = [], [], [], [], []
    for n in tqdm.tqdm(
        range(len(items)), desc="items", unit="item", disable=not progress
    ):
        item = items.take(np.array([n]))
        truth = place.drawn(item)
        with place.planted(item, truth) as taken:
            if taken is None:
                continue
            steps.append(taken)
            possible.append(
                _recall(truth.astype(float), place.gates, truth, config)[0]
            )
            found = [
                _found(gated, name, item, truth, config)
                for name in config.rankings
            ]
        for column, values in zip(
            (recall, overall, seconds), zip(*found, strict=True), strict=True
        ):
            column.append(values)
    if not steps:
        raise ValueError(
            f"None of {len(items)} items was known after {config.steps} steps. "
            "Expected some; raise `steps`, `rate` or `ratio`."
        )
    return Injection(
        model=model.name,
        rankings=config.rankings,
        ratio=config.ratio,
        shares=np.array(config.shares),
        sizes=place.gates.sizes,
        recall=np.moveaxis(np.array(recall), 0, -1),
        overall=np.moveaxis(np.array(overall), 0, -1),
        possible=np.array(possible).T,
        seconds=np.array(seconds).T,
        steps=np.array(steps),
        not_learned=len(items) - len(steps),
    )


def _found(gated: GatedModel, name: str, item: Examples, truth, config):
    """(recall by layer [K], overall [K], seconds) of one ranking."""
    started = time.perf_counter()
    ranked = rankings.named(name).rank(gated, item, gated.open_gates(1))
    seconds = time.perf_counter() - started
    return *_recall(ranked.score[0], gated.gates, truth, config), seconds


def _recall(score: np.ndarray, gates: UnitGates, truth: np.ndarray, config):
    """Recall by layer and over all units, at each share: [K], [K]."""
    everywhere = ranks_within(score, np.zeros_like(gates.layer_of))
    recall, overall = [], []
    for share in config.shares:
        first = first_of_layers(score[np.newaxis], gates, share)[0]
        recall.append((first & truth).sum() / truth.sum())
        first = everywhere < max(1, round(share * len(score)))
        overall.append((first & truth).sum() / truth.sum())
    return np.array(recall), np.array(overall)
