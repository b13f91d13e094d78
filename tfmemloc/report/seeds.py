"""The same numbers of several runs, as means with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tfmemloc.result import Result, Table, or_none
from tfmemloc.statistics import t_interval


@dataclasses.dataclass(frozen=True, eq=False)
class SeedSummary(Result):
    """How sure numbers are: mean and interval over runs."""

    title: ClassVar[str] = "How sure this is"

    runs: tuple[str, ...]  # R runs; the first one's figures are shown.
    names: tuple[str, ...]  # K numbers.
    values: np.ndarray  # [R, K]; NaN where a run has no such number.

    @classmethod
    def of(cls, numbers: Mapping[str, Mapping[str, float]]) -> SeedSummary:
        """The summary of the key numbers of runs: run -> name -> value."""
        names = dict.fromkeys(name for run in numbers.values() for name in run)
        return cls(
            runs=tuple(numbers),
            names=tuple(names),
            values=np.array(
                [
                    [run.get(name, np.nan) for name in names]
                    for run in numbers.values()
                ]
            ),
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each number."""
        rows = []
        for name, column in zip(self.names, self.values.T, strict=True):
            known = column[np.isfinite(column)]
            low, high = t_interval(known)
            rows.append(
                {
                    "number": name,
                    "runs": len(known),
                    "mean": float(known.mean()),
                    "low": or_none(low),
                    "high": or_none(high),
                    "smallest": float(known.min()),
                    "largest": float(known.max()),
                }
            )
        return rows

    def table(self) -> Table:
        """The same rows, the interval in one column."""
        rows = [
            {
                "number": row["number"],
                "runs": row["runs"],
                "mean": row["mean"],
                "interval": "-"
                if row["low"] is None
                else f"{row['low']:.3g} to {row['high']:.3g}",
                "smallest": row["smallest"],
                "largest": row["largest"],
            }
            for row in self.rows()
        ]
        return Table(rows, default=".3g")

    def sentence(self) -> str:
        """What the intervals are."""
        return (
            f"Means over {len(self.runs)} runs, with the 95% interval of "
            "Student's t for the mean; accuracies and shares are fractions of "
            f"1. The figures below are of the first run, {self.runs[0]}."
        )
