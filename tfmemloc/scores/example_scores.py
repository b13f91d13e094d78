"""The scores of the labels of the training examples, as a result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from tfmemloc.result import Result, Table
from tfmemloc.scores.quality import (
    MEASURES,
    calibration_error,
    evaluate_scores,
    suggestions_right,
)

# As many rows as a person, or a program that reads JSON, will look at.
_SAVED = 10_000


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleScores(Result):
    """How suspicious the label of each training example is, score by score.

    A *suspect* is an example for which another label than its own is the most
    probable one.
    """

    title: ClassVar[str] = "Which labels are suspected"
    renamed: ClassVar[Mapping[str, str | None]] = {"pixels": "inputs_digest"}
    # Of `rows`; scores have other names.
    COLUMNS: ClassVar[tuple[str, ...]] = (
        "combined",
        "example_id",
        "label",
        "suggested",
        "suspect",
        "suspicion",
        "subset",
        "true_label",
    )

    names: tuple[str, ...]  # K scores; the first, `combined`, ranks.
    example_id: np.ndarray  # [N].
    subset: np.ndarray  # [N] names.
    label: np.ndarray  # [N] that was trained on.
    true_label: np.ndarray  # [N] that the data set gives.
    # [N] the likeliest class by all judges together, after the adjustment to
    # the class shares.
    suggested: np.ndarray
    values: np.ndarray  # [N, K] more is more suspicious.
    suspicion: np.ndarray  # [N] the probability that the label is wrong.
    # How labels go wrong, a kind of `tfmemloc.scores.noise`; `follows` where
    # that cannot be seen; empty where the suspicion comes from predictions.
    noise: str = ""
    inputs_digest: str = ""  # Of the inputs; empty where it was not kept.

    def of(self, name: str) -> np.ndarray:
        """The values of one score: [N]."""
        return self.values[:, self.names.index(name)]

    def order(self) -> np.ndarray:
        """The places of the examples, the most suspicious first."""
        return np.argsort(-self.of("combined"), kind="stable")

    @property
    def is_suspect(self) -> np.ndarray:
        """[N] bool, whether another label is suggested."""
        return self.suggested != self.label

    def rows(self, count: int | None = None) -> list[dict[str, Any]]:
        """A row for each example, or the first ones, most suspicious first.

        Where no label is known to be wrong, true labels are unknown: they, and
        the subset if it is the same for all, are left out.
        """
        return list(self.ranked(count))

    def ranked(self, count: int | None = None) -> Iterator[dict[str, Any]]:
        """`rows`, one by one: of a million examples they take gigabytes."""
        for n in self.order()[:count]:
            yield self._row(n)

    def saved_rows(self) -> list[dict[str, Any]]:
        """The first rows; `suspects.csv` and the arrays have all."""
        return self.rows(_SAVED)

    def suspects(self, at_least: float = 0.0) -> list[dict[str, Any]]:
        """The rows of the suspects of at least this suspicion, in order."""
        chosen = self.is_suspect & (self.suspicion >= at_least)
        return [self._row(n) for n in self.order() if chosen[n]]

    def asked(self, count: int) -> list[dict[str, Any]]:
        """The first rows to decide about: suspects before all others."""
        order = self.order()
        place = np.argsort(~self.is_suspect[order], kind="stable")
        return [self._row(n) for n in order[place][:count]]

    def _row(self, n: int) -> dict[str, Any]:
        row = {
            "example_id": int(self.example_id[n]),
            "label": int(self.label[n]),
            "suggested": int(self.suggested[n]),
            "suspect": int(self.suggested[n] != self.label[n]),
            "suspicion": float(self.suspicion[n]),
        }
        knows_truth, has_subsets = self._known
        if has_subsets:
            row["subset"] = str(self.subset[n])
        if knows_truth:
            row["true_label"] = int(self.true_label[n])
        return row | {
            name: float(self.values[n, k]) for k, name in enumerate(self.names)
        }

    @functools.cached_property
    def _known(self) -> tuple[bool, bool]:
        """Whether a label is known to be wrong, and whether subsets differ."""
        knows_truth = bool((self.label != self.true_label).any())
        return knows_truth, knows_truth or len(np.unique(self.subset)) > 1

    @functools.cached_property
    def quality(self) -> list[dict[str, Any]]:
        """See `tfmemloc.evaluate_scores`; taken once."""
        return evaluate_scores(self)

    def table(self) -> Table:
        """How well each score finds the labels known to be wrong."""
        return Table(
            [
                {
                    "score": row["score"],
                    **{
                        measure: f"{row[measure]:.4f} "
                        f"[{row[f'{measure}_low']:.3f}, "
                        f"{row[f'{measure}_high']:.3f}]"
                        for measure in MEASURES
                    },
                }
                for row in self.quality
            ]
        )

    def sentence(self) -> str:
        """What was found, in a few sentences."""
        return suspects_in_words(self)

    def key_numbers(self) -> dict[str, float]:
        """How well the combined ranking finds the wrong labels."""
        if not self.quality:
            return {}
        return {
            "wrong labels: AUROC": self.quality[0]["auroc"],
            "wrong labels: average precision": self.quality[0][
                "average_precision"
            ],
            "wrong labels: right suggestions": suggestions_right(self)[0],
        }


def _noise_in_words(scores: ExampleScores) -> str:
    """What all labels together say of how many are wrong, and which."""
    if not scores.noise:
        return ""
    if scores.noise == "none":
        return (
            " No wrong labels are needed to explain what the examples say of "
            "each other's, so no suspicion is above 0. A few in a thousand, "
            "and labels that are wrong where inputs look like it, cannot be "
            "told from right ones by that: look at the top of the ranking."
        )
    if scores.noise == "follows":
        return (
            " What the examples say of each other agrees better with their "
            "labels than with those of examples that were not trained on. "
            "Either wrong labels follow from the inputs, which no suspicion "
            "here can see, or those other labels are worse: take the ranking, "
            "and no suspicion for a probability."
        )
    which = {
        "any": "of no class more often than of another",
        "class": "of some classes more often than of others",
        "pairs": "of some classes more often, and for certain others",
    }[scores.noise]
    share = f"{scores.suspicion.mean():.1%}"
    return f" About {share} of all labels are wrong, {which}."


def suspects_in_words(scores: ExampleScores) -> str:
    """What was found, in a few sentences."""
    is_suspect = scores.is_suspect
    text = (
        f"{is_suspect.sum()} of {len(scores.label)} training labels are "
        "suspected: by what is learned without the example itself, and "
        "corrected for the shares of the classes, another label is more "
        "probable. "
        f"{(is_suspect & (scores.suspicion >= 0.5)).sum()} are more likely "
        "wrong than right (a suspicion of one half or more)."
        f"{_noise_in_words(scores)}"
    )
    whole = [
        str(c)
        for c in np.unique(scores.label)
        if is_suspect[scores.label == c].mean() > 0.5
    ]
    if whole:
        text += (
            " More than half of the labels of each of these classes: "
            f"{', '.join(whole)}. Not so many are likely to be wrong: what is "
            "learned without the examples themselves is too little to judge "
            "them by. Go by the suspicion. A network that knows more, or "
            "numbers that say more of the examples, would help."
        )
    is_wrong = scores.label != scores.true_label
    wrong = int(is_wrong.sum())
    if not wrong:
        return text
    hits = int((is_suspect & is_wrong).sum())
    right, low, high = suggestions_right(scores)
    return (
        f"{text} {hits} of the suspects are among the {wrong} that are known "
        f"to be wrong; for {right:.1%} [{low:.1%}, {high:.1%}] of the wrong "
        "labels the suggestion is the true one. Calibration error of the "
        f"suspicion: {calibration_error(scores):.1%} (in ten bins; 0 is "
        "perfect). Brackets are 95% bootstrap intervals over examples."
    )
