"""Does forgetting hurt somebody? Accuracy by group, and of the worst one.

A mean hides who pays: a small group may be known by memory alone, and lose more
than others when it is dropped. For each network and group:

    accuracy, loss     on the examples of a subset that none was trained on
    lost               accuracy of the first network less that of this one

Give the network before as the first, and a control that forgets as much without
knowing whom (dropout of the same rate, a sparse network) beside the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tfmemloc.checks import check_range
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import evaluate
from tfmemloc.fields import check_fields
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.snapshots import Source, behaviours


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """On which examples.

    Attributes:
        subset: whose examples are measured.
        smallest: groups with fewer examples are put together as `other`.
    """

    subset: str = "test"
    smallest: int = 10

    def __post_init__(self):
        check_fields(self)
        check_range("smallest", self.smallest, 1, None)


@dataclasses.dataclass(frozen=True, eq=False)
class GroupAccuracy(Result):
    """Accuracy by group of some networks; a row is a network's behaviour."""

    title: ClassVar[str] = "Who loses by it? Accuracy by group"

    models: tuple[str, ...]  # R names.
    inferences: tuple[str, ...]  # R behaviours.
    groups: tuple[str, ...]  # G names, the largest first.
    count: np.ndarray  # [G] examples.
    accuracy: np.ndarray  # [R, G] in [0, 1].
    loss: np.ndarray  # [R, G] nats.

    @property
    def worst(self) -> np.ndarray:
        """[R] the group with the least accuracy."""
        return self.accuracy.argmin(axis=1)

    @property
    def lost(self) -> np.ndarray:
        """[R, G] accuracy of the first row less that of each."""
        return self.accuracy[:1] - self.accuracy

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network, behaviour and group."""
        return [
            {
                "model": self.models[r],
                "inference": self.inferences[r],
                "group": group,
                "examples": int(self.count[g]),
                "accuracy": float(self.accuracy[r, g]),
                "lost": float(self.lost[r, g]),
                "loss": float(self.loss[r, g]),
            }
            for r in range(len(self.models))
            for g, group in enumerate(self.groups)
        ]

    def table(self) -> Table:
        """The mean over examples, the worst group, and who lost most."""
        share = self.count / self.count.sum()
        rows = []
        for r in range(len(self.models)):
            worst, loser = self.worst[r], int(self.lost[r].argmax())
            rows.append(
                {
                    "model": self.models[r],
                    "inference": self.inferences[r],
                    "accuracy": float(self.accuracy[r] @ share),
                    "worst group": self.groups[worst],
                    "its accuracy": float(self.accuracy[r, worst]),
                    "lost most": self.groups[loser],
                    "lost": float(self.lost[r, loser]),
                }
            )
        return Table(rows)

    def sentence(self) -> str:
        """The worst group of each network."""
        found = [
            f"{row['model']} ({row['inference']}) {row['its accuracy']:.1%} on "
            f"{row['worst group']} (all: {row['accuracy']:.1%})"
            for row in self.table().rows
        ]
        return f"Accuracy of the worst group: {'; '.join(found)}."

    def figures(self) -> dict[str, Figure]:
        """Bars of accuracy by group."""
        names = [
            f"{model}\n{how}"
            for model, how in zip(self.models, self.inferences, strict=True)
        ]
        drawing, axes = figures.bars(
            names,
            {
                group: 100 * self.accuracy[:, g]
                for g, group in enumerate(self.groups[:6])
            },
            colors=figures.SERIES,
        )
        axes.set_ylabel("accuracy (%)")
        axes.legend(fontsize=7)
        return {
            "groups": Figure(
                "Accuracy of the largest groups, before and after.", drawing
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The accuracy of the worst group, by network."""
        return {
            f"{row['model']} {row['inference']}: worst group": row[
                "its accuracy"
            ]
            for row in self.table().rows
        }


def audit_groups(
    sources: Mapping[str, Source],
    examples: Examples,
    config: GroupConfig = GroupConfig(),
) -> GroupAccuracy:
    """Accuracy of networks by group.

    Args:
        sources: name -> a run or a functional model, which is not changed; one
            with tied layers is measured in each behaviour. The first one is
            what the others are compared with.
        examples: with groups.
        config: on which examples.

    Raises:
        ValueError: the examples have no groups, or none of that subset.

    Example:
        >>> grouped = dataclasses.replace(
        ...     examples, group=np.where(examples.label < 5, "low", "high")
        ... )
        >>> audit_groups({"standard": model}, grouped).groups
        ('low', 'high')
    """
    if examples.group is None:
        raise ValueError(
            f"{examples.name} has no groups. Expected `group`, a name for each "
            "example (of a person, a source, a site): from_arrays(..., group=)."
        )
    if not sources:
        raise ValueError("Expected a network. Received: none.")
    part = _with_others(examples.of_subset(config.subset), config.smallest)
    found = {
        key: evaluate(network, part, by="group")
        for key, network in behaviours(sources, examples)
    }
    first = next(iter(found.values()))
    order = np.argsort(-first.count, kind="stable")
    return GroupAccuracy(
        models=tuple(name for name, _ in found),
        inferences=tuple(how for _, how in found),
        groups=tuple(first.subsets[g] for g in order),
        count=first.count[order],
        accuracy=np.stack([m.accuracy[order] for m in found.values()]),
        loss=np.stack([m.loss[order] for m in found.values()]),
    )


def _with_others(examples: Examples, smallest: int) -> Examples:
    """The examples, those of small groups in a group called `other`."""
    names, place, count = np.unique(
        examples.group, return_inverse=True, return_counts=True
    )
    is_small = count[place] < smallest
    if is_small.all() or not is_small.any():
        return examples
    group = np.where(is_small, "other", names[place])
    return dataclasses.replace(examples, group=group)
