"""Do the memorization units hold the memory?

Claim (paper, section 5): in a network with example-tied dropout the memory of
an example sits in its own memorization units. Two questions are asked of each
example:

- are its critical units (see `critical_units`) among its own memorization
  units more often than chance, which is the share of these among all units
  that are on for it?
- does the prediction flip when all of its own memorization units are removed,
  and when as many other units that are on are removed at random?

A network without tied layers is asked as a control, with the masks that the
tied network gives the same examples.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar

import keras
import numpy as np

from tfmemloc import graph
from tfmemloc.data.examples import Examples
from tfmemloc.probes.critical_units import find_critical_units
from tfmemloc.result import Result, Table
from tfmemloc.snapshots import Source, model_of
from tfmemloc.statistics import bootstrap_interval, row_ranks
from tfmemloc.units import GatedModel, SearchConfig, UnitGates

_LAST = 2**32  # Sorts behind every hash.


@dataclasses.dataclass(frozen=True)
class OwnUnitsConfig(SearchConfig):
    """How critical units are searched for, by default at the tied layers.

    Attributes:
        count: examples of each of the two subsets that are searched.
    """

    count: int | None = 64


@dataclasses.dataclass(frozen=True, eq=False)
class OwnUnits(Result):
    """Whether critical units are the example's own memorization units."""

    title: ClassVar[str] = "Do the memorization units hold the memory?"

    network: str  # Its name in tables.
    subsets: tuple[str, ...]  # S names of the searched examples.
    example_id: np.ndarray  # [N].
    subset: np.ndarray  # [N] the subset of each.
    size: np.ndarray  # [N] critical units.
    own: np.ndarray  # [N] how many of them are the example's own.
    # [N] share of its own units among all that are on for it.
    chance: np.ndarray
    own_flips: np.ndarray  # [N] bool: all own units removed.
    control_flips: np.ndarray  # [N] bool: as many others that are on removed.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each subset; shares are means over examples."""
        return [
            self._row(subset)
            for subset in self.subsets
            if self._members(subset).any()
        ]

    def _members(self, subset: str) -> np.ndarray:
        return (self.subset == subset) & (self.size > 0)

    def _row(self, subset: str) -> dict[str, Any]:
        members = self._members(subset)
        own = self.own[members] / self.size[members]
        low, high = bootstrap_interval(own, np.mean)
        return {
            "model": self.network,
            "subset": subset,
            "examples": int(members.sum()),
            "own": float(own.mean()),
            "own_low": low,
            "own_high": high,
            "chance": float(self.chance[members].mean()),
            "own_flips": float(self.own_flips[members].mean()),
            "control_flips": float(self.control_flips[members].mean()),
            "median_size": float(np.median(self.size[members])),
        }

    def table(self) -> Table:
        """The same rows, the interval beside the share."""
        rows = [
            {
                "model": row["model"],
                "subset": row["subset"],
                "examples": row["examples"],
                "own": f"{row['own']:.1%} "
                f"[{row['own_low']:.1%}, {row['own_high']:.1%}]",
                "chance": row["chance"],
                "median_size": row["median_size"],
                "own_flips": row["own_flips"],
                "control_flips": row["control_flips"],
            }
            for row in self.rows()
        ]
        return Table(rows, {"median_size": ".3g"})

    def sentence(self) -> str:
        """What the columns are."""
        return (
            f"Network {self.network}. own: the share of an example's critical "
            "units that lie among its own memorization units, with a 95% "
            "bootstrap interval over examples. chance: their share among all "
            "units that are on for it. own_flips: how often the prediction "
            "changes when all of the example's own memorization units are "
            "removed. control_flips: how often when as many of the other "
            "units that are on are removed at random. Units are gated where "
            "the dropout stands; a network without tied layers is asked with "
            "the masks that the tied network gives the same examples."
        )


def find_own_units(
    source: Source,
    examples: Examples,
    config: OwnUnitsConfig = OwnUnitsConfig(),
    *,
    tied: keras.Model | None = None,
    network: str = "network",
    directory: str | os.PathLike | None = None,
    progress: bool = True,
) -> OwnUnits:
    """Tests whether critical units are the example's own memorization units.

    Args:
        source: a run, or any functional model.
        examples: the data of the run.
        config: of the search; without `layers`, units are gated at the tied
            layers, and where the network was expanded beside them at the
            layers whose units generalize.
        tied: a model with tied layers whose masks say which units are an
            example's own; None is the searched model.
        network: its name in tables.
        directory: where the search keeps finished blocks.
        progress: show a progress bar.

    Raises:
        ValueError: there is no tied layer, or none of them has as many units
            as the searched layer of its name.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> config = OwnUnitsConfig(count=4, inference="tied", bystanders=20)
        >>> result = find_own_units(run, run.examples(), config)
        >>> result.own.shape == result.example_id.shape
        True
    """
    model = model_of(source, examples, config.inference)
    tied = model if tied is None else tied
    layers = config.layers or graph.gated_names(tied)
    if not layers:
        raise ValueError(
            f"Model '{tied.name}' has no ExampleTiedDropout layer, whose masks "
            "say which units are an example's own. Pass one that has by `tied`."
        )
    config = dataclasses.replace(config, layers=layers)
    found = find_critical_units(
        model, examples, config, directory=directory, progress=progress
    )
    searched = examples.of_ids(found.example_id)
    gates = UnitGates(model, layers=layers, place=config.place)
    own, on = _own_and_on(gates, tied, searched.example_id)
    if len(searched) and not own.any():
        raise ValueError(
            f"None of the layers {', '.join(layers)} of model '{model.name}' "
            f"has as many units as the tied layer of its name in '{tied.name}'."
        )
    gated = GatedModel(model, gates, examples, config)
    count = own.sum(axis=1)
    rank = row_ranks(np.where(on & ~own, gated.hashes(searched), _LAST))
    control = rank < count[:, np.newaxis]
    rows = np.arange(len(searched))[:, np.newaxis]
    is_own = own[rows, np.maximum(found.units, 0)] & found.critical
    return OwnUnits(
        network=network,
        subsets=found.searched(),
        example_id=searched.example_id,
        subset=searched.subset,
        size=found.size,
        own=is_own.sum(axis=1),
        chance=count / np.maximum(1, on.sum(axis=1)),
        own_flips=_flips(gated, searched, own),
        control_flips=_flips(gated, searched, control),
    )


def _flips(gated, searched: Examples, removed: np.ndarray) -> np.ndarray:
    """[N] bool: whether the removal of units [N, U] changes predictions."""
    if not len(searched):
        return np.zeros(0, bool)
    return ~gated.is_right(searched, (~removed).astype(np.float32))


def _own_and_on(gates, tied, ids) -> tuple[np.ndarray, np.ndarray]:
    """Which units are an example's own, and which are on: bool [N, U]."""
    by_name = {layer.name: layer for layer in graph.tied_layers(tied)}
    own = np.zeros((len(ids), gates.units), bool)
    on = np.ones_like(own)
    for name, start, size in zip(
        gates.names, gates.starts, gates.sizes, strict=True
    ):
        layer = by_name.get(name)
        if layer is None or layer.units != size:
            continue
        part = slice(start, start + size)
        on[:, part] = own[:, part] = layer.example_units(ids)
        own[:, start : start + layer.generalization_units] = False
    return own, on
