"""The accuracies of one or several trainings, by epoch, as a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfmemloc import subsets
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table, or_none


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingHistory(Result):
    """Accuracy of each subset by epoch, of one network or several."""

    title: ClassVar[str] = "What the network learned"

    networks: tuple[str, ...]  # R names.
    # [R] pairs (inference, subset) that were measured, in order.
    curves: tuple[tuple[tuple[str, str], ...], ...]
    epochs: np.ndarray  # [R, E] epoch; 0 is padding.
    accuracy: np.ndarray  # [R, E, C] in [0, 1]; NaN where not measured.
    # Of large subsets, how many examples were measured before the last epoch.
    sampled: int | None = None

    @classmethod
    def of(
        cls, histories: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> TrainingHistory:
        """Makes the result from histories: name of a network -> its history."""
        curves = {name: _curves(lines) for name, lines in histories.items()}
        longest = max(map(len, histories.values()))
        widest = max(map(len, curves.values()), default=0)
        epochs = np.zeros((len(histories), longest), int)
        accuracy = np.full((len(histories), longest, widest), np.nan)
        for r, (name, lines) in enumerate(histories.items()):
            for e, line in enumerate(lines):
                epochs[r, e] = line["epoch"]
                known = line.get("accuracy", {})
                for c, (inference, subset) in enumerate(curves[name]):
                    value = known.get(inference, {}).get(subset, np.nan)
                    accuracy[r, e, c] = value
        counts = {
            count
            for lines in histories.values()
            for line in lines
            for count in line.get("sampled", {}).values()
        }
        return cls(
            tuple(histories),
            tuple(curves.values()),
            epochs,
            accuracy,
            max(counts, default=None),
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network and epoch."""
        return [
            {
                "network": network,
                "epoch": int(self.epochs[r, e]),
                **{
                    f"{inference}_{subset}": or_none(self.accuracy[r, e, c])
                    for c, (inference, subset) in enumerate(self.curves[r])
                },
            }
            for r, network in enumerate(self.networks)
            for e in range(int((self.epochs[r] > 0).sum()))
        ]

    def table(self) -> Table:
        """The accuracies at the end."""
        rows = []
        for r, network in enumerate(self.networks):
            measured = np.isfinite(self.accuracy[r]).any(axis=1)
            if not measured.any():
                continue
            last = self.accuracy[r, np.flatnonzero(measured)[-1]]
            by_inference: dict[str, dict[str, Any]] = {}
            for c, (inference, subset) in enumerate(self.curves[r]):
                row = by_inference.setdefault(
                    inference, {"run": network, "inference": inference}
                )
                row[subset] = float(last[c])
            rows += by_inference.values()
        return Table(rows)

    def sentence(self) -> str:
        """How many epochs there are."""
        counts = ", ".join(
            f"{network} {int((self.epochs[r] > 0).sum())}"
            for r, network in enumerate(self.networks)
        )
        words = f"Epochs recorded: {counts}."
        if self.sampled:
            words += (
                " Before the last epoch, accuracies of larger subsets are "
                f"those of {self.sampled:,} examples, drawn once."
            )
        return words

    def figures(self) -> dict[str, Figure]:
        """Curves by epoch, a panel for each network."""
        if not np.isfinite(self.accuracy).any():
            return {}
        return {
            "learning_curves": Figure(
                "Accuracy of each subset by epoch; dashed lines: "
                "memorization units dropped.",
                _drawn(self),
            )
        }


def _curves(lines) -> tuple[tuple[str, str], ...]:
    """The (inference, subset) pairs that a history has."""
    pairs = {
        (inference, subset)
        for line in lines
        for inference, accuracy in line.get("accuracy", {}).items()
        for subset in accuracy
    }
    names = subsets.ordered(subset for _, subset in pairs)
    return tuple(
        sorted(
            pairs, key=lambda pair: (pair[0] == "drop", names.index(pair[1]))
        )
    )


def _drawn(result: TrainingHistory):
    count = len(result.networks)
    figure = figures.Drawing(figsize=(3 * count, 3.2), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for r, panel in enumerate(panels):
        names = subsets.ordered(subset for _, subset in result.curves[r])
        for c, (inference, subset) in enumerate(result.curves[r]):
            known = np.isfinite(result.accuracy[r, :, c])
            words = figures.WORDS.get(inference, inference)
            panel.plot(
                result.epochs[r, known],
                100 * result.accuracy[r, known, c],
                figures.LINES.get(inference, ":"),
                color=figures.color_of(subset, names),
                label=f"{subset} {words}".strip(),
            )
        panel.set_title(result.networks[r].replace("_", " "), fontsize=10)
        panel.set_xlabel("epoch")
        figures.plain_axes(panel)
    panels[0].set_ylabel("accuracy (%)")
    panels[0].set_ylim(-3, 103)
    panels[-1].legend(fontsize=7, loc="center right")
    return figure
