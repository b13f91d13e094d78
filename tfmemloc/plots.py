"""Figures of results. Colours are Okabe and Ito's, told apart by everyone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from tfmemloc.results import (
    CriticalUnits,
    GradientAccounting,
    LayerRetraining,
    LayerRewinding,
    Localization,
    SweepResults,
)

COLORS = {
    "clean": "#0072B2",
    "noisy": "#D55E00",
    "typical": "#0072B2",
    "atypical": "#D55E00",
    "test": "#009E73",
}
# Of lines that stand for no subset; Okabe and Ito's too.
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = "osD^vX"
_LINES = {"plain": "-", "tied": "-", "drop": "--"}
_WORDS = {
    "plain": "",
    "tied": "tied",
    "expected": "expected",
    "drop": "dropped",
    "drop_recalibrated": "dropped,\nrecalibrated",
}


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    # No time stamp: the same figure gives the same bytes.
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def picture(image: np.ndarray) -> bytes:
    """An image [height, width, channels] as a small PNG file.

    Pixels are uint8, or floats in [-1, 1]. One channel is grey; of more than
    three the first three are shown.
    """
    if image.dtype != np.uint8:
        image = np.clip(127.5 * (image + 1), 0, 255).astype(np.uint8)
    if image.shape[-1] < 3:
        image = np.repeat(image[..., :1], 3, axis=-1)
    file = io.BytesIO()
    imsave(
        file,
        np.ascontiguousarray(image[..., :3]),
        format="png",
        metadata={"Software": None},
    )
    return file.getvalue()


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Figure:
    """Accuracy of each subset by epoch, a panel for each network.

    Args:
        histories: name of the network -> its history.
    """
    figure = Figure(figsize=(3 * len(histories), 3.2), layout="constrained")
    panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0]
    for panel, (name, history) in zip(panels, histories.items(), strict=True):
        for inference, subset in _curves(history):
            known = [
                line
                for line in history
                if inference in line.get("accuracy", {})
            ]
            panel.plot(
                [line["epoch"] for line in known],
                [100 * line["accuracy"][inference][subset] for line in known],
                _LINES.get(inference, ":"),
                color=COLORS.get(subset),
                label=f"{subset} {_WORDS[inference]}".strip(),
            )
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel("epoch")
        _plain_axes(panel)
    panels[0].set_ylabel("accuracy (%)")
    panels[0].set_ylim(-3, 103)
    panels[-1].legend(fontsize=7, loc="center right")
    return figure


def _curves(history) -> list[tuple[str, str]]:
    """The (inference, subset) pairs that a history has."""
    return sorted(
        {
            (inference, subset)
            for line in history
            for inference, accuracy in line.get("accuracy", {}).items()
            for subset in accuracy
        },
        key=lambda pair: (pair[0] == "drop", list(COLORS).index(pair[1])),
    )


def accuracy_before_after(result: Localization) -> Figure:
    """Accuracy of each subset, by network and behaviour, as bars."""
    count = len(result.models)
    figure = Figure(figsize=(1.5 * count + 1, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(result.subsets)
    for s, subset in enumerate(result.subsets):
        middle = np.arange(count) + (s - (len(result.subsets) - 1) / 2) * width
        bars = axes.bar(
            middle,
            100 * result.accuracy[:, s],
            width,
            color=COLORS.get(subset),
            label=subset,
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(
        np.arange(count),
        [
            "\n".join(
                filter(None, (model.replace("_", "\n"), _WORDS[inference]))
            )
            for model, inference in zip(
                result.models, result.inferences, strict=True
            )
        ],
        fontsize=8,
    )
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 118)
    axes.legend(ncols=len(result.subsets), fontsize=8, loc="upper center")
    _plain_axes(axes)
    return figure


def gradient_norms(result: GradientAccounting) -> Figure:
    """Norm of each subset's aggregate gradient, a panel for each group."""
    figure, panels = _group_panels(result.groups)
    for g, panel in enumerate(panels):
        for s, subset in enumerate(result.subsets):
            panel.plot(
                result.epochs,
                result.norm[:, g, s],
                color=COLORS.get(subset),
                label=subset,
            )
        panel.set_yscale("log")
    figure.axes[0].legend(fontsize=7)
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("norm of the aggregate gradient", fontsize=9)
    return figure


def gradient_cosines(result: GradientAccounting) -> Figure:
    """Cosine between the training subsets' gradients, group by epoch."""
    return _heat_map(
        result,
        result.cosine,
        f"cosine, {result.memorized} and {result.ordinary}",
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
    )


def gradient_shares(result: GradientAccounting) -> Figure:
    """Share of the squared per-example norms, group by epoch."""
    return _heat_map(
        result,
        100 * result.share,
        f"share of the {result.memorized} examples (%)",
        cmap="cividis",
        vmin=0,
        vmax=100,
    )


def rewinding_maps(result: LayerRewinding) -> Figure:
    """Accuracy by group and epoch rewound to, a map for each subset."""
    labels = [str(epoch) for epoch in result.epochs]
    accuracy = result.accuracy
    if len(result.fresh_accuracy):
        labels = ["fresh", *labels]
        accuracy = np.concatenate([result.fresh_accuracy[np.newaxis], accuracy])
    count, groups, subsets = accuracy.shape
    figure = Figure(
        figsize=((0.36 * count + 1.2) * subsets + 1, 0.28 * groups + 1.4),
        layout="constrained",
    )
    panels = figure.subplots(1, subsets, sharey=True, squeeze=False)[0]
    for s, (panel, subset) in enumerate(
        zip(panels, result.subsets, strict=True)
    ):
        image = panel.imshow(
            100 * accuracy[:, :, s].T,
            aspect="auto",
            cmap="cividis",
            vmin=0,
            vmax=100,
        )
        panel.set_title(subset, fontsize=10)
        panel.set_xticks(range(count), labels, fontsize=7, rotation=60)
        panel.set_xlabel("rewound to epoch")
    panels[0].set_yticks(range(groups), result.groups, fontsize=8)
    figure.colorbar(image, ax=list(panels), label="accuracy (%)")
    return figure


def retraining_curves(result: LayerRetraining) -> Figure:
    """Accuracy of each subset while one group learns, a panel each."""
    figure, panels = _group_panels(result.groups)
    for g, panel in enumerate(panels):
        for s, subset in enumerate(result.subsets):
            panel.plot(
                100 * result.accuracy[g, :, s],
                ".-",
                color=COLORS.get(subset),
                label=subset,
            )
        panel.set_ylim(-3, 103)
    figure.axes[0].legend(fontsize=7, loc="lower right")
    figure.supxlabel(f"epochs on {result.trained_on} examples", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    return figure


def critical_sizes(result: CriticalUnits) -> Figure:
    """Share of examples whose set has at most so many units."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for subset in result.searched():
        mine = result.subset == subset
        controls = {
            "": ("-", result.size),
            ", by activation": ("--", result.activation_size),
            ", random": (":", result.random_size),
        }
        for words, (line, size) in controls.items():
            axes.ecdf(
                np.where(np.isfinite(size[mine]), size[mine], np.inf),
                linestyle=line,
                color=COLORS.get(subset),
                label=subset + words,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("units removed until the prediction flips")
    axes.set_ylabel("share of the examples")
    axes.legend(fontsize=7)
    _plain_axes(axes)
    return figure


def critical_harm(result: CriticalUnits) -> Figure:
    """Accuracy on others after each example's set was removed."""
    searched = result.searched()
    figure = Figure(
        figsize=(1.2 + 1.5 * len(result.subsets), 3.2), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(searched)
    for i, subset in enumerate(searched):
        middle = np.arange(len(result.subsets))
        middle = middle + (i - (len(searched) - 1) / 2) * width
        mine = result.subset == subset
        boxes = axes.boxplot(
            100 * result.accuracy_after[mine],
            positions=middle,
            widths=0.8 * width,
            patch_artist=True,
            manage_ticks=False,
            flierprops={"markersize": 2},
            medianprops={"color": "black"},
        )
        for box in boxes["boxes"]:
            box.set_facecolor(COLORS.get(subset, "gray"))
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
    _plain_axes(axes)
    return figure


def critical_layers(result: CriticalUnits) -> Figure:
    """Share of the critical units in each layer, beside its share of units."""
    shares = result.layer_shares()
    bars = {
        **{f"of {name} examples": share for name, share in shares.items()},
        "of all units": result.sizes / result.sizes.sum(),
    }
    colors = [*(COLORS.get(name) for name in shares), "#999999"]
    count = len(result.layers)
    figure = Figure(figsize=(0.8 * count + 1.6, 3.2), layout="constrained")
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
    _plain_axes(axes)
    return figure


def sweep_curves(
    result: SweepResults, names: Sequence[str], over: str = "seed"
) -> Figure:
    """Numbers by the first flag, a line for each value of the others.

    Points are means over `over`, bars one standard deviation up and down.

    Args:
        result: with at least one flag besides `over`, which has numbers.
        names: a panel for each of these numbers.
        over: the flag that is averaged over.
    """
    groups = result.groups(over)
    flag, *others = result.other_flags(over)
    lines = list(dict.fromkeys(key[1:] for key in groups))
    figure = Figure(figsize=(3.2 * len(names) + 1, 3.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        k = result.names.index(name)
        for i, line in enumerate(lines):
            mine = {
                float(key[0]): (100 * mean[k], 100 * spread[k])
                for key, (mean, spread, _) in groups.items()
                if key[1:] == line
            }
            x = sorted(mine)
            panel.errorbar(
                x,
                [mine[value][0] for value in x],
                [mine[value][1] for value in x],
                marker=_MARKERS[i % len(_MARKERS)],
                capsize=3,
                color=_SERIES[i % len(_SERIES)],
                label=", ".join(
                    f"{other} {value}"
                    for other, value in zip(others, line, strict=True)
                ),
            )
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel(flag)
        _plain_axes(panel)
    panels[0].set_ylabel("accuracy (%)")
    if others:
        panels[-1].legend(fontsize=7)
    return figure


def _heat_map(result, values, label: str, **options) -> Figure:
    """values [E, G], epochs to the right and groups downwards."""
    count, groups = values.shape
    figure = Figure(
        figsize=(max(4.5, 0.22 * count + 2.5), 0.28 * groups + 1.2),
        layout="constrained",
    )
    axes = figure.subplots()
    image = axes.imshow(values.T, aspect="auto", **options)
    axes.set_yticks(range(groups), result.groups, fontsize=8)
    step = max(1, count // 12)
    ticks = range(0, count, step)
    axes.set_xticks(ticks, [result.epochs[i] for i in ticks], fontsize=8)
    axes.set_xlabel("epoch")
    figure.colorbar(image, label=label)
    return figure


def _group_panels(groups: tuple[str, ...]) -> tuple[Figure, list[Axes]]:
    """A figure with a small panel for each layer group."""
    columns = min(5, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(
        figsize=(2.2 * columns + 0.5, 2 * lines + 0.6), layout="constrained"
    )
    panels = list(
        figure.subplots(
            lines, columns, sharex=True, sharey=True, squeeze=False
        ).flat
    )
    for spare in panels[len(groups) :]:
        spare.remove()
    panels = panels[: len(groups)]
    for panel, group in zip(panels, groups, strict=True):
        panel.set_title(group, fontsize=9)
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _plain_axes(panel)
    return figure, panels


def _plain_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
