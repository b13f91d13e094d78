"""What a removal did: a network before and after, by subset.

Every removal gives a new network and a `Removal`, so that all are compared by
the same numbers: how many of the labels to be forgotten are still predicted
(`noisy`), how many of these examples get their true label, and what it cost
(`clean`, `test`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from sklearn import metrics

from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import (
    SubsetMetrics,
    evaluate,
    joined_metrics,
    measured,
    predict_logits,
)
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result
from tfmemloc.scores.of_training import margins
from tfmemloc.subsets import OfSubsets, is_trained_on

STAGES = ("before", "after")


@dataclasses.dataclass(frozen=True, eq=False)
class Removal(OfSubsets, Result):
    """A network before and after memory was taken out of it."""

    title: ClassVar[str] = "The network before and after the removal"

    method: str
    dataset: str
    subsets: tuple[str, ...]  # S names.
    count: np.ndarray  # [S] examples.
    accuracy: np.ndarray  # [2, S] before and after, labels as given.
    true_accuracy: np.ndarray  # [2, S] of the true labels.
    loss: np.ndarray  # [2, S] mean cross-entropy in nats.
    # [2] of ranking labels by the network's own margin; NaN if none is wrong.
    average_precision: np.ndarray
    seconds: float  # Of the removal, without measuring it.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each stage: accuracy by subset, as far as known."""
        return [self._row(stage) for stage in range(len(STAGES))]

    def _row(self, stage: int) -> dict[str, Any]:
        row: dict[str, Any] = {"stage": STAGES[stage]}
        for s, subset in enumerate(self.subsets):
            row[subset] = float(self.accuracy[stage, s])
            if subset == "noisy":
                row["noisy_true_label"] = float(self.true_accuracy[stage, s])
        if np.isfinite(self.average_precision).all():
            row["average_precision"] = float(self.average_precision[stage])
        return row

    def sentence(self) -> str:
        """What was forgotten, and what it cost."""
        before, after = self.rows()
        text = f"Method: {self.method}, {self.seconds:.0f} seconds."
        memorized = self.memorized
        if memorized is not None:
            text += (
                f" Of the {memorized} training examples the network gets "
                f"{after[memorized]:.1%} right as they are labelled (before: "
                f"{before[memorized]:.1%})"
            )
            if memorized == "noisy":
                text += (
                    f", and it gives {after['noisy_true_label']:.1%} of them "
                    f"their true label ({before['noisy_true_label']:.1%})"
                )
            text += "."
        else:
            was, now = self._known()
            text += (
                f" Of the training labels as given it predicts {now:.1%} "
                f"(before: {was:.1%}). Where some are wrong, that should fall "
                "by about their share."
            )
        for subset in ("test", "heldout", "validation"):
            if subset in after:
                text += (
                    f" Accuracy on {subset} examples: {after[subset]:.1%} "
                    f"(before: {before[subset]:.1%})."
                )
        if "average_precision" in after:
            text += (
                " Ranking the labels by its margins finds the wrong ones with "
                "an average precision of "
                f"{after['average_precision']:.1%} "
                f"(before: {before['average_precision']:.1%})."
            )
        return text

    def _known(self) -> np.ndarray:
        """[2] share of all training labels that are predicted, as given."""
        trained = is_trained_on(np.asarray(self.subsets))
        return np.average(
            self.accuracy[:, trained], axis=1, weights=self.count[trained]
        )

    def figures(self) -> dict[str, Figure]:
        """Bars before and after."""
        return {
            "removal": Figure(
                "Accuracy of each subset before and after, labels as given.",
                figures.accuracy_bars(STAGES, self.accuracy, self.subsets),
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """Every accuracy."""
        return {
            f"{row['stage']} removal: {name}".replace("_", " "): value
            for row in self.rows()
            for name, value in row.items()
            if isinstance(value, float)
        }


def measures(
    before: keras.Model, after: keras.Model, examples: Examples
) -> dict[str, Any]:
    """The fields of a `Removal` that compare two networks."""
    return compared(before, after, examples)[0]


def compared(
    before: keras.Model, after: keras.Model, examples: Examples
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The fields of a `Removal`, and what each class came to.

    Returns:
        The fields; and [2, classes] before and after, the share of the training
        examples of each class, as they are labelled, that the network gets
        right: NaN of a class without any, None of next tokens.
    """
    found = [_measured(model, examples) for model in (before, after)]
    metrics_of = [each.metrics for each in found]
    by_class = [each.by_class for each in found]
    fields = {
        "dataset": examples.name,
        "subsets": metrics_of[0].subsets,
        "count": metrics_of[0].count,
        "average_precision": np.array([each.precision for each in found]),
        **{
            field: np.stack([getattr(m, field) for m in metrics_of])
            for field in ("accuracy", "true_accuracy", "loss")
        },
    }
    return fields, None if by_class[0] is None else np.stack(by_class)


class _Measured(NamedTuple):
    metrics: SubsetMetrics
    # Of the ranking of the training labels by the network's margins.
    precision: float
    by_class: np.ndarray | None


def _measured(model: keras.Model, examples: Examples) -> _Measured:
    if examples.label.ndim > 1:
        return _Measured(evaluate(model, examples), float("nan"), None)
    logits = predict_logits(model, examples)
    everything = measured(logits, examples, np.arange(len(examples)))
    is_trained = examples.is_trained_on
    return _Measured(
        joined_metrics([everything], examples),
        _average_precision(logits[is_trained], examples.train),
        _right_by_class(logits[is_trained], examples.train),
    )


def _right_by_class(logits: np.ndarray, train: Examples) -> np.ndarray:
    """[classes]; NaN of a class without an example."""
    right = logits.argmax(axis=-1) == train.label
    counts = np.bincount(train.label, minlength=train.classes)
    hits = np.bincount(train.label, weights=right, minlength=train.classes)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def _average_precision(logits: np.ndarray, train: Examples) -> float:
    wrong = train.label != train.true_label
    if not wrong.any():
        return float("nan")
    margin = margins(logits, train.label)
    return float(metrics.average_precision_score(wrong, -margin))
