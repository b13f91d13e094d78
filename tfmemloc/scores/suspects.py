"""Wrong labels, found and shown: a ranking, a table and a page of examples."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfmemloc import data, report, storage
from tfmemloc.data.examples import Examples
from tfmemloc.report.figures import picture
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.quality import calibration_error, suggestions_right

PAGE = "suspects.html"
TABLE = "suspects.csv"
ISSUES = "issues.csv"
EVALUATION = "suspects.json"
_SHOWN = 100
# How many numbers or tokens are shown of an input that is not a picture.
_NUMBERS = 64


def write_suspects(
    directory: str | os.PathLike,
    scores: ExampleScores,
    examples: Examples,
    shown: int | None = None,
) -> None:
    """Writes the ranking: scores, table, page and what is known of them.

    Args:
        directory: made if it does not exist.
        scores: of the training examples.
        examples: the data.
        shown: number of examples on the page, suspects or not, the most
            suspicious first; None shows the first 100 suspects.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    storage.write_csv(directory / TABLE, scores.ranked())
    storage.write_csv(directory / ISSUES, issues(scores, examples))
    storage.write_json(directory / EVALUATION, _evaluation(scores))
    _write_page(directory / PAGE, scores, examples, shown)
    # The scores are saved last: if they exist, the page exists, too.
    scores.save(directory / "example_scores")


def check_examples(scores: ExampleScores, examples: Examples) -> None:
    """Refuses examples other than those that were scored."""
    scored = examples.of_ids(scores.example_id)
    differs = {
        "labels": (scored.label != scores.label).any(),
        "inputs": scores.inputs_digest not in ("", scored.inputs_digest()),
    }
    wrong = [what for what, is_other in differs.items() if is_other]
    if wrong:
        raise ValueError(
            f"The scores are of other {' and '.join(wrong)} than those of "
            f"{examples.name}. Expected the examples that were scored."
        )


def issues(
    scores: ExampleScores, examples: Examples
) -> Iterator[dict[str, Any]]:
    """The ranking as cleanlab's and FiftyOne's users know it, in data order.

    Yields:
        A row for each training example: `is_label_issue`; `label_score` in
        [0, 1], the lower the worse; `given_label` and `predicted_label`, the
        names of classes.
    """
    score = 1 - scores.of("combined")
    is_suspect = scores.is_suspect
    for n in range(len(scores.label)):
        yield {
            "example_id": int(scores.example_id[n]),
            "is_label_issue": bool(is_suspect[n]),
            "label_score": round(float(score[n]), 6),
            "given_label": examples.class_name(int(scores.label[n])),
            "predicted_label": examples.class_name(int(scores.suggested[n])),
        }


def _evaluation(scores: ExampleScores) -> dict[str, Any]:
    """What is known of the scores where true labels are, for programs."""
    wrong = int((scores.label != scores.true_label).sum())
    summary: dict[str, Any] = {
        "training_examples": len(scores.label),
        "suspects": int(scores.is_suspect.sum()),
        "known_wrong_labels": wrong,
        "scores": scores.quality,
    }
    if wrong:
        right, low, high = suggestions_right(scores)
        summary |= {
            "suggestions_right": right,
            "suggestions_right_low": low,
            "suggestions_right_high": high,
            "calibration_error": calibration_error(scores),
        }
    return summary


def _write_page(path, scores, examples: Examples, count: int | None) -> None:
    if count is None:
        rows = scores.asked(min(_SHOWN, int(scores.is_suspect.sum())))
    else:
        rows = scores.rows(count)
    cards = []
    if rows:
        shown = examples.of_ids([row["example_id"] for row in rows])
        cards = [_card(row, n, scores, shown) for n, row in enumerate(rows)]
    report.write_html(
        path,
        f"Suspected labels of {examples.name}",
        [report.section_of(scores, cards=cards)],
        {
            "Table": f"{TABLE} lists all training examples.",
            "Scores": "In each, more is more suspicious; "
            "tfmemloc.scores says what they are.",
        },
    )


def _card(
    row: dict[str, Any], n: int, scores: ExampleScores, shown: Examples
) -> report.Card:
    label, suggested = (
        shown.class_name(row[name]) for name in ("label", "suggested")
    )
    png, text = appearance(shown, n)
    return report.Card(
        (
            f"labelled {label}, suggested {suggested}",
            f"id {row['example_id']}, suspicion {row['suspicion']:.0%}",
        ),
        png,
        text,
        {name: f"{row[name]:.3g}" for name in scores.names},
    )


def appearance(examples: Examples, place: int) -> tuple[bytes, str]:
    """What an example looks like: the PNG of its picture, and its words.

    Args:
        examples: any.
        place: which of them.

    Returns:
        The first picture among its inputs, or nothing; and its other inputs as
        text: the words of tokens, the names and numbers of a row.
    """
    png, lines = b"", []
    for name, kind in data.input_kinds(examples).items():
        values = examples.inputs[name][np.array([place])][0]
        if kind == "picture" and not png:
            png = picture(values)
            continue
        words = examples.words.get(name, ())
        text = _in_words(values.reshape(-1)[:_NUMBERS], kind, words)
        several = len(examples.inputs) > 1
        lines.append(f"{name}: {text}" if several else text)
    return png, "\n".join(lines)


def _in_words(values: np.ndarray, kind: str, words: Sequence[str]) -> str:
    if kind == "tokens":
        return " ".join(
            words[token] if 0 <= token < len(words) else str(token)
            for token in values.tolist()
        )
    numbers = [f"{value:.4g}" for value in values.tolist()]
    if len(words) >= len(numbers):
        return ", ".join(
            f"{word} {number}"
            for word, number in zip(words, numbers, strict=False)
        )
    return ", ".join(numbers)
