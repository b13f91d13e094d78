"""The points that were tried, and what is left of each kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure as Drawing

from tfmemloc.report import figures
from tfmemloc.result import Figure

if TYPE_CHECKING:
    from tfmemloc.removal.curvature.result import CurvatureEdit


def curve(result: CurvatureEdit) -> dict[str, Figure]:
    """Held-out accuracy of each point of the first round over its memory."""
    first = result.point_round == 0
    if not first.any():
        return {}
    drawing = Drawing(figsize=(6, 3.6), layout="constrained")
    axes = drawing.subplots()
    train, heldout = (
        100 * values[first]
        for values in (result.point_train, result.point_heldout)
    )
    whole = result.point_whole[first]
    paths = [w for w in np.unique(whole) if w < len(result.layers)]
    for k, number in enumerate(paths):
        members = np.flatnonzero(whole == number)
        # Half steps were tried last.
        members = members[np.argsort(-result.point_keep[first][members])]
        axes.plot(
            train[members],
            heldout[members],
            **figures.series(k),
            markersize=4,
            linewidth=1,
            label=_whole(number),
        )
    axes.plot(train[0], heldout[0], "k*", markersize=10, label="before")
    chosen = np.flatnonzero(result.point_chosen[first])
    axes.plot(
        train[chosen],
        heldout[chosen],
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="black",
        label="chosen",
    )
    floor = heldout.max() - 100 * result.error[0]
    axes.axhline(floor, color="black", linewidth=0.8, linestyle=":")
    # Edits that destroyed the network would press all others together.
    shown = heldout > floor - 15
    axes.set_ylim(max(0, floor - 15), heldout.max() + 2)
    axes.set_xlim(train[shown].max() + 2, train[shown].min() - 2)
    axes.set_xlabel("accuracy on examples trained on, labels as given (%)")
    axes.set_ylabel(
        "accuracy held out (%)"
        if result.judge == "heldout"
        else "accuracy by all other examples (%)"
    )
    axes.legend(fontsize=7)
    figures.plain_axes(axes)
    return {
        "edit_curve": Figure(
            "Every edit that was tried in the first round: the further to the "
            "right, the less the network still knows of its training labels. "
            "The dotted line is one standard error below the best accuracy by "
            "the judge.",
            drawing,
        )
    }


def kernels(result: CurvatureEdit) -> dict[str, Figure]:
    """The share of each squared kernel that the edits took away."""
    removed = 100 * (1 - result.energy)
    drawing = Drawing(
        figsize=(6, 0.24 * len(result.layers) + 1.2), layout="constrained"
    )
    axes = drawing.subplots()
    height = 0.8 / len(removed)
    for r, values in enumerate(removed):
        places = np.arange(len(values)) + (r - (len(removed) - 1) / 2) * height
        axes.barh(
            places,
            values,
            height,
            color=figures.SERIES[r % len(figures.SERIES)],
            label=f"edit {r + 1}",
        )
    axes.set_yticks(np.arange(len(result.layers)), result.layers, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of the squared kernel that was cut (%)")
    axes.legend(fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return {
        "edited_kernels": Figure(
            "How much of each kernel lay in directions that few examples use.",
            drawing,
        )
    }


def _whole(number: int) -> str:
    """How many kernels are left whole, in words."""
    if number == 0:
        return "all kernels cut"
    return f"{number} kernel{'s' if number > 1 else ''} whole"
