"""The numbers at the end of the runs of a sweep."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfmemloc import storage
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.sweeps.grid import Cell


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResults(Result):
    """The numbers at the end of many runs that differ in some flags."""

    title: ClassVar[str] = "What the flags change"

    flags: tuple[str, ...]  # F that differ.
    settings: np.ndarray  # [R, F] strings: the flags of each run.
    names: tuple[str, ...]  # K numbers, such as `drop_noisy`.
    values: np.ndarray  # [R, K] accuracies in [0, 1].
    over: str = "seed"  # The flag whose values are averaged over.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run: its flags, its numbers."""
        return [
            dict(zip(self.flags, map(str, setting), strict=True))
            | dict(zip(self.names, map(float, value), strict=True))
            for setting, value in zip(self.settings, self.values, strict=True)
        ]

    def groups(
        self,
    ) -> dict[tuple[str, ...], tuple[np.ndarray, np.ndarray, int]]:
        """Runs that differ in the flag `over` alone, together.

        Returns:
            The other flags' values -> (mean [K], standard deviation [K] with
            one degree of freedom less than runs, number of runs).
        """
        others = [f for f, flag in enumerate(self.flags) if flag != self.over]
        keys = [tuple(map(str, row[others])) for row in self.settings]
        groups = {}
        for key in dict.fromkeys(keys):
            mine = self.values[[k == key for k in keys]]
            spread = np.zeros(len(self.names))
            if len(mine) > 1:
                spread = mine.std(axis=0, ddof=1)
            groups[key] = mine.mean(axis=0), spread, len(mine)
        return groups

    @property
    def other_flags(self) -> tuple[str, ...]:
        """The flags but `over`: names of the keys of `groups`."""
        return tuple(flag for flag in self.flags if flag != self.over)

    def table(self) -> Table:
        """Mean and standard deviation of each group of runs."""
        shown = self._shown()
        rows = [
            {
                **dict(zip(self.other_flags, key, strict=True)),
                "runs": count,
                **{
                    name: f"{100 * mean[k]:.1f} ± {100 * spread[k]:.1f}%"
                    if count > 1
                    else f"{100 * mean[k]:.1f}%"
                    for k, name in enumerate(self.names)
                    if name in shown
                },
            }
            for key, (mean, spread, count) in self.groups().items()
        ]
        return Table(rows)

    def sentence(self) -> str:
        """How many runs there are, and where the best ones are."""
        groups = self.groups()
        counts = {count for _, _, count in groups.values()}
        text = (
            f"{len(self.values)} runs; mean and standard deviation over "
            f"{min(counts)}"
            + (f" to {max(counts)}" if len(counts) > 1 else "")
            + f" {self.over}s."
        )
        tests = [name for name in self.names if name.endswith("test")]
        if not self.other_flags or not tests:
            return text
        k = self.names.index(
            next((name for name in tests if "drop_" in name), tests[0])
        )
        best = max(groups, key=lambda key: groups[key][0][k])
        where = ", ".join(
            f"{flag} {value}"
            for flag, value in zip(self.other_flags, best, strict=True)
        )
        return (
            f"{text} The best {self.names[k].replace('_', ' ')} accuracy, "
            f"{groups[best][0][k]:.1%}, is at {where}."
        )

    def figures(self) -> dict[str, Figure]:
        """Curves over the first flag, where it is a number."""
        groups = self.groups()
        if not self.other_flags or not all(
            _is_number(key[0]) for key in groups
        ):
            return {}
        return {
            "sweep": Figure(
                f"Accuracy by {self.other_flags[0]}; bars are one standard "
                f"deviation over {self.over}s.",
                _curves(self, self._shown()),
            )
        }

    def _shown(self) -> list[str]:
        """The numbers that a table has room for: after the drop, if any."""
        dropped = [
            name
            for name in self.names
            if re.match(r"(example_tied_)?drop_(?!recalibrated)", name)
        ]
        return dropped or list(self.names)[:6]


def _curves(result: SweepResults, names: Sequence[str]):
    """Numbers by the first flag, a line for each value of the others.

    Points are means over `over`, bars one standard deviation up and down.
    """
    groups = result.groups()
    flag, *others = result.other_flags
    lines = list(dict.fromkeys(key[1:] for key in groups))
    figure = figures.Drawing(
        figsize=(3.2 * len(names) + 1, 3.2), layout="constrained"
    )
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        k = result.names.index(name)
        for i, line in enumerate(lines):
            points = {
                float(key[0]): (100 * mean[k], 100 * spread[k])
                for key, (mean, spread, _) in groups.items()
                if key[1:] == line
            }
            x = sorted(points)
            panel.errorbar(
                x,
                [points[value][0] for value in x],
                [points[value][1] for value in x],
                **figures.series(i),
                capsize=3,
                label=", ".join(
                    f"{other} {value}"
                    for other, value in zip(others, line, strict=True)
                ),
            )
        panel.set_title(name.replace("_", " "), fontsize=10)
        panel.set_xlabel(flag)
        figures.plain_axes(panel)
    panels[0].set_ylabel("accuracy (%)")
    if others:
        panels[-1].legend(fontsize=7)
    return figure


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def numbers_of(directory: pathlib.Path) -> dict[str, float]:
    """The accuracies at the end of a cell, by name."""
    summary = directory / "summary.json"
    numbers: dict[str, float] = {}
    if summary.exists():
        for row in storage.read_json(summary)["rows"]:
            prefix = f"{row['model']}_{row['inference']}"
            numbers |= {
                f"{prefix}_{name}": value
                for name, value in row.items()
                if isinstance(value, float)
            }
        return numbers
    last = storage.read_json(directory / "history.json")["epochs"][-1]
    for inference, accuracy in last["accuracy"].items():
        numbers |= {f"{inference}_{name}": v for name, v in accuracy.items()}
    return numbers


def gather_sweep(
    directory: str | os.PathLike, cells: Sequence[Cell], over: str = "seed"
) -> SweepResults:
    """The numbers of finished cells.

    Raises:
        FileNotFoundError: a cell is not finished.
        DamagedFileError: a file does not hold what a cell wrote.
    """
    directory = pathlib.Path(directory)
    parts = [_read_numbers(directory / cell.name) for cell in cells]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return SweepResults(
        flags=tuple(flag for flag, _ in cells[0].values),
        settings=np.array(
            [[value for _, value in cell.values] for cell in cells]
        ),
        names=tuple(names),
        over=over,
        values=np.array([[part[name] for name in names] for part in parts]),
    )


def _read_numbers(directory: pathlib.Path) -> Mapping[str, float]:
    path = directory / "done.json"
    numbers = storage.read_json(path)
    is_good = isinstance(numbers, dict) and all(
        isinstance(value, float | int) for value in numbers.values()
    )
    if not is_good:
        raise storage.DamagedFileError(
            f"{path} does not hold the numbers of a cell. Delete it, and the "
            "same command makes it anew."
        )
    return numbers
