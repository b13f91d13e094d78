"""Interleaved timing of two sides, and rows of results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

REPEATS = 9


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured ratio or size."""

    benchmark: str
    metric: str
    value: float  # The median.
    min: float
    max: float
    repeats: int
    reach: float | None  # What the project wants; None only reports.
    lower_is_better: bool


def ratios(
    benchmark: str,
    sides: Mapping[str, Callable[[], object]],
    wanted: Sequence[tuple[str, str, str, float | None, bool]],
    *,
    repeats: int = REPEATS,
) -> list[Row]:
    """Times all sides in turn, and gives ratios between them.

    Args:
        benchmark: name for the rows.
        sides: name -> a function that does the work and waits for its end.
        wanted: (metric, upper side, lower side, reach, lower is better).
        repeats: rounds; each round times every side once.
    """
    seconds = timed(sides, repeats)
    rows = []
    for metric, upper, lower, reach, lower_is_better in wanted:
        values = seconds[upper] / seconds[lower]
        rows.append(
            Row(
                benchmark,
                metric,
                float(np.median(values)),
                float(values.min()),
                float(values.max()),
                repeats,
                reach,
                lower_is_better,
            )
        )
    return rows


def timed(
    sides: Mapping[str, Callable[[], object]], repeats: int = REPEATS
) -> dict[str, np.ndarray]:
    """Seconds [repeats] of each side, in turn, after one round untimed."""
    for work in sides.values():
        work()
    seconds = {name: np.zeros(repeats) for name in sides}
    for k in range(repeats):
        for name, work in sides.items():
            started = time.perf_counter()
            work()
            seconds[name][k] = time.perf_counter() - started
    return seconds
