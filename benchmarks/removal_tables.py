"""The tables of `benchmarks.removal`, from the rows in docs/results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tfmemloc import report, storage
from tfmemloc.result import Table
from tfmemloc.statistics import t_interval

Rows = Sequence[Mapping[str, Any]]

# For a first look: a few networks; what was, our removal as it is by default,
# and what else asks for no ids.
_FIRST_LOOK = {
    "digits": "digits, half ResNet-9",
    "vit": "digits, small ViT",
    "mobilenet": "MNIST 5,000, MobileNetV3Small",
    "cifar": "CIFAR-10 5,000, quarter ResNet-9",
}
_SHORT = {
    "before": "before",
    "believed by all": "binaries.remove",
    "early stopping": "early stopping",
}
# The first rows of each table; others follow as they were measured.
_FIRST = (
    "before",
    "curvature edit and refit twice",
    "curvature edit",
    "the same chosen by all other examples",
    "the same at a fixed 0.9",
    "refits alone (control)",
    *("believed by all", "believed by all without an edit (control)"),
    *("augmented refits", "augmented refits without an edit (control)"),
    "augmented and believed by all",
    "augmented and believed by all without an edit (control)",
    "retraining without doubted labels",
    "early stopping",
    "tied dropout dropped",
)
_MEASURES = ("noisy", "noisy_true_label", "clean", "test")
_RECITED = {
    "recited, 10x": "recited, 10x",
    "recited, 100x": "recited, 100x",
    "right instead": "right",
    "right on new ones": "test_right",
}
_ATTACKS = {
    "none": "noisy",
    "8 bits": "noisy after rounding to 8 bits",
    "4 bits": "noisy after rounding to 4 bits",
    "pruned 10%": "noisy after pruning 10%",
    "pruned 20%": "noisy after pruning 20%",
    "1 step": "noisy after 1 steps of training",
    "10 steps": "noisy after 10 steps of training",
    "100 steps": "noisy after 100 steps of training",
}


def read(path) -> Rows:
    """The rows that were measured."""
    return storage.read_json(path)["rows"]


def grouped(rows: Rows, *columns: str) -> dict[tuple[str, ...], Rows]:
    """Rows that agree in some columns, together, in the order of measuring."""
    found: dict[tuple[str, ...], list] = {}
    for row in rows:
        found.setdefault(tuple(row[c] for c in columns), []).append(row)
    return found


def _by_method(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    found = grouped(rows, "setting", "method", "forget")
    place = {name: k for k, name in enumerate(_FIRST)}
    order = sorted(found, key=lambda key: place.get(key[1], len(place)))
    return {key: found[key] for key in order}


def interval(values: Sequence[float]) -> str:
    """A mean in percent, with half of its 95 % interval over seeds."""
    center = 100 * statistics.fmean(values)
    low, high = t_interval(values)
    if math.isnan(low):
        return f"{center:.1f}"
    return f"{center:.1f} ± {100 * (high - low) / 2:.1f}"


def short(rows: Rows) -> str:
    """The methods that need no ids, on a few networks; means over seeds."""
    lines = []
    for name, title in _FIRST_LOOK.items():
        of_setting = [row for row in rows if row["setting"] == name]
        for (_, method, _), found in _by_method(of_setting).items():
            if method not in _SHORT:
                continue
            lines.append(
                {
                    "network": title,
                    "method": _SHORT[method],
                    "seeds": len(found),
                    **{
                        measure: f"{100 * mean(found, measure):.1f}%"
                        for measure in _MEASURES
                    },
                }
            )
    return fenced(lines)


def mean(rows: Rows, measure: str) -> float:
    """The mean of a measure over rows."""
    return statistics.fmean(row[measure] for row in rows)


def full(rows: Rows, setting: str) -> str:
    """Every method on one kind of network, in percent."""
    lines = [
        {
            "method": method,
            "told": forget,
            "seeds": len(found),
            **{
                measure: interval([row[measure] for row in found])
                for measure in (*_MEASURES, "average_precision")
            },
            "seconds": f"{statistics.median(r['seconds'] for r in found):.0f}",
        }
        for (name, method, forget), found in _by_method(rows).items()
        if name == setting
    ]
    return fenced(lines)


def recitation(rows: Rows) -> str:
    """Every method on TinyMem: what is recited, and what is understood."""
    lines = [
        {
            "method": method,
            "told": forget,
            "seeds": len(found),
            **{
                column: interval([row[measure] for row in found])
                for column, measure in _RECITED.items()
            },
            "test_loss": f"{mean(found, 'test_loss'):.3f}",
            "seconds": f"{statistics.median(r['seconds'] for r in found):.0f}",
        }
        for (name, method, forget), found in _by_method(rows).items()
        if name == "tinymem"
    ]
    return fenced(lines)


def durability(rows: Rows, setting: str) -> str:
    """What is known of the wrong labels after each attack, in percent."""
    lines = [
        {
            "method": method,
            "told": forget,
            **{
                name: f"{100 * mean(found, measure):.1f}"
                for name, measure in _ATTACKS.items()
            },
        }
        for (name, method, forget), found in _by_method(rows).items()
        if name == setting
    ]
    return fenced(lines)


def protect(rows: Rows) -> str:
    """What an edit costs a rare kind of examples, protected and not."""
    lines = [
        {
            "rare": rare,
            "network": network,
            **{
                measure: interval([row[measure] for row in found])
                for measure in ("noisy", "test", "rare_train", "rare_test")
            },
        }
        for (rare, network), found in grouped(rows, "rare", "network").items()
    ]
    return fenced(lines)


def fenced(lines: Rows) -> str:
    """A table as a block of Markdown."""
    return f"```\n{report.text_table(Table(lines))}\n```\n"
