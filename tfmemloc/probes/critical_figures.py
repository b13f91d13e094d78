"""Figures of critical units: sizes, harm to others, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tfmemloc.report.figures import Drawing, color_of, plain_axes

if TYPE_CHECKING:
    from tfmemloc.probes.critical_units import CriticalUnits


def sizes(result: CriticalUnits) -> Drawing:
    """Share of examples by the size of their critical sets, cumulative."""
    figure = Drawing(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for subset in result.searched():
        members = result.subset == subset
        controls = {
            "": ("-", result.size),
            ", by activation": ("--", result.activation_size),
            ", random": (":", result.random_size),
        }
        for words, (line, size) in controls.items():
            axes.ecdf(
                np.where(np.isfinite(size[members]), size[members], np.inf),
                linestyle=line,
                color=color_of(subset, result.subsets),
                label=subset + words,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("units removed until the prediction flips")
    axes.set_ylabel("share of the examples")
    axes.legend(fontsize=7)
    plain_axes(axes)
    return figure


def harm(result: CriticalUnits) -> Drawing:
    """Accuracy on others after each example's set was removed."""
    searched = result.searched()
    figure = Drawing(
        figsize=(1.2 + 1.5 * len(result.subsets), 3.2), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(searched)
    for i, subset in enumerate(searched):
        middle = np.arange(len(result.subsets))
        middle = middle + (i - (len(searched) - 1) / 2) * width
        members = result.subset == subset
        boxes = axes.boxplot(
            100 * result.accuracy_after[members],
            positions=middle,
            widths=0.8 * width,
            patch_artist=True,
            manage_ticks=False,
            flierprops={"markersize": 2},
            medianprops={"color": "black"},
        )
        for box in boxes["boxes"]:
            box.set_facecolor(color_of(subset, result.subsets))
        boxes["boxes"][0].set_label(f"set of a {subset} example")
    for s, value in enumerate(result.baseline):
        axes.hlines(
            100 * value,
            s - 0.45,
            s + 0.45,
            color="black",
            linestyle=":",
            label="nothing removed" if s == 0 else None,
        )
    axes.set_xticks(
        range(len(result.subsets)),
        [f"other {subset}" for subset in result.subsets],
    )
    axes.set_ylabel("accuracy (%)")
    axes.legend(fontsize=7, loc="lower left")
    plain_axes(axes)
    return figure


def layers(result: CriticalUnits) -> Drawing:
    """Share of the critical units in each layer, beside its share of units."""
    shares = result.layer_shares()
    bars = {
        **{f"of {name} examples": share for name, share in shares.items()},
        "of all units": result.sizes / result.sizes.sum(),
    }
    colors = [*(color_of(name, result.subsets) for name in shares), "#999999"]
    count = len(result.layers)
    figure = Drawing(figsize=(0.8 * count + 1.6, 3.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(bars)
    for i, (words, share) in enumerate(bars.items()):
        axes.bar(
            np.arange(count) + (i - (len(bars) - 1) / 2) * width,
            100 * share,
            width,
            color=colors[i],
            label=words,
        )
    axes.set_xticks(range(count), result.layers, rotation=40, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel("share (%)")
    axes.legend(fontsize=7)
    plain_axes(axes)
    return figure
