"""Results: frozen dataclasses of named arrays, saved as npz + json.

Every probe returns one. The axes of an array are named in the field's comment:
N examples, G layer groups, E epochs, S subsets, U units.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, TypeVar

import numpy as np

from tfmemloc import storage

AnyResult = TypeVar("AnyResult", bound="Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What all results can do: be saved, loaded and listed."""

    def save(self, path: str | os.PathLike) -> None:
        """Writes `<path>.npz` (arrays) and `<path>.json` (the rest, and rows).

        Args:
            path: without ending; its folder must exist.
        """
        path = pathlib.Path(path)
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }
        arrays = {
            name: value
            for name, value in fields.items()
            if isinstance(value, np.ndarray)
        }
        storage.write_arrays(path.with_name(path.name + ".npz"), arrays)
        storage.write_json(
            path.with_name(path.name + ".json"),
            {
                "type": type(self).__name__,
                "fields": {
                    name: value
                    for name, value in fields.items()
                    if name not in arrays
                },
                "rows": self.rows(),
            },
        )

    @classmethod
    def load(cls: type[AnyResult], path: str | os.PathLike) -> AnyResult:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: the files hold another type of result, or are damaged.
        """
        path = pathlib.Path(path)
        header = storage.read_json(path.with_name(path.name + ".json"))
        if not isinstance(header, dict) or header.get("type") != cls.__name__:
            found = header.get("type") if isinstance(header, dict) else header
            raise ValueError(
                f"{path}.json expected a result of type {cls.__name__}. "
                f"Received: {found!r}."
            )
        fields = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in header["fields"].items()
        }
        arrays = storage.read_arrays(path.with_name(path.name + ".npz"))
        return cls(**fields, **arrays)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per cell of the arrays; pandas takes the list."""
        raise TypeError(f"{type(self).__name__} defines no rows.")


@dataclasses.dataclass(frozen=True, eq=False)
class SubsetMetrics(Result):
    """How well a network does on each subset."""

    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
    count: np.ndarray  # [S] examples.
    accuracy: np.ndarray  # [S] in [0, 1], of the labels trained on.
    true_accuracy: np.ndarray  # [S] in [0, 1], of the true labels.
    loss: np.ndarray  # [S] mean cross-entropy in nats, labels trained on.

    def of(self, subset: str) -> dict[str, float]:
        """The numbers of one subset."""
        s = self.subsets.index(subset)
        return {
            name: float(getattr(self, name)[s])
            for name in ("accuracy", "true_accuracy", "loss")
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each subset."""
        return [
            {"subset": subset, "count": int(self.count[s]), **self.of(subset)}
            for s, subset in enumerate(self.subsets)
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Localization(Result):
    """Networks with different dropout, before and after the drop (paper, 5).

    A row is a network in one behaviour: `plain` where it has no tied layer,
    else `tied` (memorization units on), `expected` or `drop` (off).
    """

    dataset: str
    models: tuple[str, ...]  # R rows: which network.
    inferences: tuple[str, ...]  # R rows: in which behaviour.
    subsets: tuple[str, ...]  # S of clean, noisy, typical, atypical, test.
    count: np.ndarray  # [S] examples.
    accuracy: np.ndarray  # [R, S] in [0, 1], of the labels trained on.
    true_accuracy: np.ndarray  # [R, S] in [0, 1], of the true labels.
    loss: np.ndarray  # [R, S] mean cross-entropy in nats.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network and behaviour: accuracy by subset.

        `noisy_true_label` is the accuracy on the noisy examples against the
        labels that they had before they were made wrong.
        """
        return [self._row(r) for r in range(len(self.models))]

    def _row(self, r: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "model": self.models[r],
            "inference": self.inferences[r],
        }
        for s, subset in enumerate(self.subsets):
            row[subset] = float(self.accuracy[r, s])
            if subset == "noisy":
                row["noisy_true_label"] = float(self.true_accuracy[r, s])
        return row

    def row(self, model: str, inference: str) -> dict[str, Any]:
        """The row of one network in one behaviour."""
        pairs = list(zip(self.models, self.inferences, strict=True))
        return self._row(pairs.index((model, inference)))
