"""Interleaved timing of two sides, and rows of results."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from binaries import start  # noqa: F401  First: it starts TensorFlow quietly.
from tfmemloc import storage

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


def kept_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows that a file of results holds; none if it is not there."""
    path = pathlib.Path(path)
    return storage.read_json(path)["rows"] if path.exists() else []


def chosen(
    only: Sequence[str] | None, known: Iterable[str], flag: str = "only"
) -> list[str]:
    """The names of --only, or of another flag; or all that are known.

    Raises:
        ValueError: one is not known.
    """
    known = list(known)
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(
            f"--{flag} must name some of {', '.join(known)}. Received: "
            f"{', '.join(unknown)}."
        )
    return list(only or known)


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
