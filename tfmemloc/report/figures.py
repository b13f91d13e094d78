"""Charts that results are drawn with.

Colours are Okabe and Ito's, which everyone can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

_COLORS = {
    "clean": "#0072B2",
    "noisy": "#D55E00",
    "typical": "#0072B2",
    "atypical": "#D55E00",
    "test": "#009E73",
}
# The colours of all other names.
SERIES = ("#CC79A7", "#56B4E9", "#E69F00", "#0072B2", "#D55E00", "#009E73")
MARKERS = "osD^vX"
LINES = {"plain": "-", "tied": "-", "drop": "--"}
WORDS = {
    "plain": "",
    "tied": "tied",
    "expected": "expected",
    "drop": "dropped",
    "drop_recalibrated": "dropped,\nrecalibrated",
}


def color_of(name: str, names: Sequence[str] = ()) -> str:
    """The colour of a subset; of any other name, by its position in `names`."""
    if name in _COLORS:
        return _COLORS[name]
    others = [other for other in names if other not in _COLORS]
    place = others.index(name) if name in others else 0
    return SERIES[place % len(SERIES)]


def series(place: int) -> dict[str, str]:
    """The colour and the marker of a series, for Matplotlib's `plot`."""
    return {
        "color": SERIES[place % len(SERIES)],
        "marker": MARKERS[place % len(MARKERS)],
    }


def network(place: int, name: str, inference: str) -> dict[str, str]:
    """How the line of a network in one behaviour looks, and its label."""
    return {
        **series(place),
        "linestyle": LINES.get(inference, "-."),
        "label": f"{name}, {inference}",
    }


def bars(
    labels: Sequence[str],
    series: Mapping[str, np.ndarray],
    *,
    colors: Sequence[str],
    width_each: float = 1.5,
    numbers: bool = False,
) -> tuple[Drawing, Axes]:
    """Groups of bars, one bar of each series in a group.

    Args:
        labels: of the groups.
        series: name -> [groups] values.
        colors: of the series.
        width_each: inches of a group.
        numbers: write the value over each bar.
    """
    count = len(labels)
    figure = Drawing(
        figsize=(width_each * count + 1, 3.4), layout="constrained"
    )
    axes = figure.subplots()
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        middle = np.arange(count) + (k - (len(series) - 1) / 2) * width
        drawn = axes.bar(middle, values, width, color=colors[k], label=name)
        if numbers:
            axes.bar_label(drawn, fmt="%.0f", fontsize=7, padding=1)
    axes.set_xticks(np.arange(count), labels, fontsize=8)
    plain_axes(axes)
    return figure, axes


def accuracy_bars(
    labels: Sequence[str], accuracy: np.ndarray, subsets: Sequence[str]
) -> Drawing:
    """Accuracies [groups, subsets] in [0, 1] as bars in percent."""
    figure, axes = bars(
        labels,
        {subset: 100 * accuracy[:, s] for s, subset in enumerate(subsets)},
        colors=[color_of(subset, subsets) for subset in subsets],
        numbers=True,
    )
    axes.set_ylabel("accuracy (%)")
    # Two lines where names would be wider than the bars.
    lines = -(-len(subsets) // 3)
    axes.set_ylim(0, 108 + 10 * lines)
    axes.legend(ncols=min(3, len(subsets)), fontsize=8, loc="upper center")
    return figure


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[Any],
    label: str,
    **options: Any,
) -> Drawing:
    """values [columns, rows]: columns to the right and rows downwards."""
    count, lines = values.shape
    figure = Drawing(
        figsize=(max(4.5, 0.22 * count + 2.5), 0.28 * lines + 1.2),
        layout="constrained",
    )
    axes = figure.subplots()
    image = axes.imshow(values.T, aspect="auto", **options)
    axes.set_yticks(range(lines), rows, fontsize=8)
    ticks = range(0, count, max(1, count // 12))
    axes.set_xticks(ticks, [columns[i] for i in ticks], fontsize=8)
    axes.set_xlabel("epoch")
    figure.colorbar(image, label=label)
    return figure


def panels(names: Sequence[str]) -> tuple[Drawing, list[Axes]]:
    """A figure with a small panel for each name."""
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure = Drawing(
        figsize=(2.2 * columns + 0.5, 2 * lines + 0.6), layout="constrained"
    )
    found = list(
        figure.subplots(
            lines, columns, sharex=True, sharey=True, squeeze=False
        ).flat
    )
    for spare in found[len(names) :]:
        spare.remove()
    found = found[: len(names)]
    for panel, name in zip(found, names, strict=True):
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelbottom=True)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        plain_axes(panel)
    return figure, found


def side_by_side(x: str, heights: Sequence[str]) -> tuple[Drawing, list[Axes]]:
    """Plots beside each other, each with an axis of its own.

    Args:
        x: words under each of them.
        heights: words beside each of them.
    """
    count = len(heights)
    figure = Drawing(figsize=(4.2 * count + 0.4, 3.4), layout="constrained")
    found = list(figure.subplots(1, count, squeeze=False).flat)
    for axes, words in zip(found, heights, strict=True):
        axes.set(xlabel=x, ylabel=words)
        plain_axes(axes)
    return figure, found


def offsets(count: int, series: int) -> Iterator[np.ndarray]:
    """Where the marks of each of several series stand in `count` groups."""
    width = 0.8 / series
    for k in range(series):
        yield np.arange(count) + (k - (series - 1) / 2) * width


def plain_axes(axes: Axes) -> None:
    """Takes the frame away and draws faint lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


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
