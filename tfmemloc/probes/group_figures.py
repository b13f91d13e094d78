"""Figure of the units of groups: how many they are, and what goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfmemloc.report import figures

if TYPE_CHECKING:
    from tfmemloc.probes.group_units import GroupUnits


def sizes_and_harm(result: GroupUnits) -> figures.Drawing:
    """Sizes of the sets by group, and the accuracy of all others."""
    drawing, (sizes, harm) = figures.side_by_side(
        result.by.replace("_", " "),
        ["units removed until the group flips", "accuracy (%)"],
    )
    names = list(dict.fromkeys(result.group))
    for subset in dict.fromkeys(result.subset):
        _draw_sizes(sizes, result, subset, names)
    _draw_harm(harm, result, names)
    sizes.set_yscale("log")
    sizes.yaxis.set_major_formatter("{x:g}")
    for axes in (sizes, harm):
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.legend(fontsize=6)
    return drawing


def _draw_sizes(axes, result, subset: str, names: list[str]) -> None:
    mine = result.is_of(subset)
    for marker, words, values in (
        ("o", "", result.size),
        ("x", ", by activation", result.activation_size),
        ("+", ", random", result.random_size),
    ):
        axes.plot(
            _places(result, mine, names),
            values[mine],
            marker,
            color=figures.color_of(subset, result.subsets),
            label=subset + words,
            fillstyle="full" if subset == result.memorized else "none",
        )


def _draw_harm(axes, result, names: list[str]) -> None:
    """Without the units of memorized groups."""
    mine = result.is_of(result.memorized)
    for s, subset in enumerate(result.subsets):
        color = figures.color_of(subset, result.subsets)
        axes.axhline(100 * result.baseline[s], color=color, linestyle=":")
        axes.plot(
            _places(result, mine, names),
            100 * result.accuracy_after[mine, s],
            figures.MARKERS[s % len(figures.MARKERS)],
            color=color,
            label=f"other {subset}",
        )


def _places(result, mine: np.ndarray, names: list[str]) -> list[int]:
    return [names.index(result.group[g]) for g in np.flatnonzero(mine)]
