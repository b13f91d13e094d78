"""Table and figure of `benchmarks.tied_dropout`, from docs/results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.removal_tables import Rows, fenced, grouped, interval, mean
from tfmemloc import report
from tfmemloc.report import figures
from tfmemloc.result import Table

NAMES = {
    "cifar": "CIFAR-10, 5,000 images",
    "cifar10k": "CIFAR-10, 10,000 images",
    "cifar50": "CIFAR-10, 45,000 images",
    "cifar50_half": "CIFAR-10, 45,000 images, half width",
}
_MEASURES = ("noisy", "noisy_true_label", "clean", "test")

# How `benchmarks.removal` calls what is done to the standard network.
_OF_STANDARD = {
    "before": "plain",
    "curvature edit and refit twice": "edited",
    "believed by all": "edited, believed by all",
    "believed by all without an edit (control)": "refitted, believed by all",
    "augmented and believed by all without an edit (control)": (
        "refitted on augmented, believed by all"
    ),
}


def beside_standard(tied: Rows, removals: Rows) -> Rows:
    """Tied networks, and the same done to the standard one, in one list.

    Args:
        tied: rows of `benchmarks.tied_dropout`.
        removals: rows of `benchmarks.removal`, of the same standard networks.
    """
    standard = [
        {
            **{name: row[name] for name in ("setting", "seed", *_MEASURES)},
            "method": "standard",
            "inference": _OF_STANDARD[row["method"]],
        }
        for row in removals
        if row["method"] in _OF_STANDARD
    ]
    return [*standard, *tied]


def _by_method(rows: Rows, setting: str) -> dict[tuple[str, str], Rows]:
    """(method, behaviour) -> its rows; networks without a memory first."""
    found = grouped(
        [row for row in rows if row["setting"] == setting],
        "method",
        "inference",
    )
    methods = list(dict.fromkeys(method for method, _ in found))
    methods.sort(key=lambda m: ("carved" in m or "expanded" in m, "+" in m))
    order = sorted(found, key=lambda key: methods.index(key[0]))
    return {key: found[key] for key in order}


def table(rows: Rows, setting: str) -> str:
    """Every method and behaviour, in percent; means with 95 % intervals."""
    lines = [
        {
            "method": method,
            "network": inference,
            "seeds": len(found),
            **{
                measure: interval([row[measure] for row in found])
                for measure in _MEASURES
                if all(measure in row for row in found)
            },
        }
        for (method, inference), found in _by_method(rows, setting).items()
    ]
    return fenced(lines)


def mechanism(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether critical units are the example's own."""
    names = ("own", "chance", "own_flips", "control_flips")
    lines = [
        {
            "method": row["model"],
            "subset": row["subset"],
            "examples": row["examples"],
            **{name: row[name] for name in names},
            "median_size": f"{row['median_size']:.3g}",
        }
        for row in rows
    ]
    return f"```\n{report.text_table(Table(lines))}\n```\n"


def draw(rows: Rows, setting: str, path: os.PathLike) -> None:
    """Noisy accuracy against test accuracy, a point for each network."""
    drawing = figures.Drawing(figsize=(7, 4.4), layout="constrained")
    axes = drawing.subplots()
    shown = {
        key: found
        for key, found in _by_method(rows, setting).items()
        if key[1] not in ("tied", "drop")
    }
    for k, ((method, inference), found) in enumerate(shown.items()):
        x, y = 100 * mean(found, "noisy"), 100 * mean(found, "test")
        axes.plot(
            x,
            y,
            linestyle="",
            **figures.series(k),
        )
        axes.annotate(
            f"{method}, edited"
            if inference == "edited" and "+" in method
            else method,
            (x, y),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlabel("wrong labels still predicted (%): less is better")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(x=0.25, y=0.1)
    figures.plain_axes(axes)
    drawing.savefig(path, dpi=150)
