"""Wrong labels, found and shown: a ranking, a table and a page of pictures."""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmemloc import plots, report, storage
from tfmemloc.data import Examples
from tfmemloc.results import ExampleScores
from tfmemloc.runs import Run
from tfmemloc.scores import (
    MEASURES,
    calibration_error,
    evaluate_scores,
    score_examples,
    suggestions_right,
)

PAGE = "suspects.html"
TABLE = "suspects.csv"
EVALUATION = "suspects.json"
_SHOWN = 100


def find_label_errors(
    source: Run | Sequence[Run] | ExampleScores,
    examples: Examples,
    directory: str | os.PathLike,
    *,
    shown: int | None = None,
    **options: Any,
) -> ExampleScores:
    """Ranks the training examples by how suspicious their labels are.

    Args:
        source: a run with tied dropout, or several of the same data that
            differ in their seed, or scores that were made before.
        examples: the data of the run, or of the scores.
        directory: where `example_scores.npz` and `.json`, `suspects.csv` (all
            training examples, the most suspicious first), `suspects.html`
            (pictures) and `suspects.json` (how well each score finds the
            labels that are known to be wrong) are written.
        shown: pictures of so many examples, suspects or not, the most
            suspicious first; None shows the first 100 suspects.
        **options: of `score_examples`, where `source` is a run or several.

    Returns:
        The scores. A *suspect* is an example for which, without its memory
        and after adjustment to the class shares, another label than the given
        one is the most probable.

    Raises:
        ValueError: the scores are of other examples; see `score_examples`.
        TypeError: the source is neither runs nor scores, or there are options
            for scores that were made before.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> scores = find_label_errors(run, run.examples(), "suspects")
        >>> len(scores.suspects())
    """
    if _is_of_runs(source):
        source = score_examples(source, examples, **options)
    elif not isinstance(source, ExampleScores) or options:
        raise TypeError(
            "Expected runs and options of `score_examples`, or scores and no "
            f"options. Received: {type(source).__name__}, options "
            f"{sorted(options)}. `scores_of_logits` makes scores of anybody's "
            "predictions."
        )
    _check_examples(source, examples)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    storage.write_text(directory / TABLE, _csv(source.rows()))
    storage.write_json(directory / EVALUATION, _evaluation(source))
    _write_page(directory / PAGE, source, examples, shown)
    # Last: where the scores are, the page is.
    source.save(directory / "example_scores")
    return source


def _is_of_runs(source: Any) -> bool:
    return isinstance(source, Run) or (
        isinstance(source, (list, tuple))
        and all(isinstance(each, Run) for each in source)
    )


def _check_examples(scores: ExampleScores, examples: Examples) -> None:
    """Refuses examples other than those that were scored."""
    found = examples.of_ids(scores.example_id)
    pixels = found.fingerprint()["train"]["image"]
    differs = {
        "labels": (found.label != scores.label).any(),
        "images": scores.pixels not in ("", pixels),
    }
    wrong = [what for what, is_other in differs.items() if is_other]
    if wrong:
        raise ValueError(
            f"The scores are of other {' and '.join(wrong)} than those of "
            f"{examples.name}. Expected the examples that were scored."
        )


def _evaluation(scores: ExampleScores) -> dict[str, Any]:
    """What is known of the scores where true labels are, for programs."""
    wrong = int((scores.label != scores.true_label).sum())
    found: dict[str, Any] = {
        "training_examples": len(scores.label),
        "suspects": int(scores.is_suspect.sum()),
        "known_wrong_labels": wrong,
        "scores": evaluate_scores(scores),
    }
    if wrong:
        right, low, high = suggestions_right(scores)
        found |= {
            "suggestions_right": right,
            "suggestions_right_low": low,
            "suggestions_right_high": high,
            "calibration_error": calibration_error(scores),
        }
    return found


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _write_page(path, scores, examples: Examples, count: int | None) -> None:
    suspects = (
        scores.suspects()[:_SHOWN] if count is None else scores.rows(count)
    )
    pictures = []
    if suspects:
        shown = examples.of_ids([row["example_id"] for row in suspects])
        pictures = [
            _picture(row, image, scores, examples)
            for row, image in zip(suspects, shown.image, strict=True)
        ]
    report.write_html(
        path,
        f"Suspected labels of {examples.name}",
        [suspects_section(scores, pictures)],
        {
            "Table": f"{TABLE} lists all training examples.",
            "Scores": "In each, more is more suspicious; "
            "tfmemloc.scores says what they are.",
        },
    )


def _picture(
    row: dict[str, Any],
    image: np.ndarray,
    scores: ExampleScores,
    examples: Examples,
) -> report.Picture:
    label, suggested = (
        examples.class_name(row[name]) for name in ("label", "suggested")
    )
    return report.Picture(
        plots.picture(image),
        (
            f"labelled {label}, suggested {suggested}",
            f"id {row['example_id']}, suspicion {row['suspicion']:.0%}",
        ),
        {name: f"{row[name]:.3g}" for name in scores.names},
    )


def suspects_section(
    scores: ExampleScores, pictures=(), links=None
) -> report.Section:
    """How many labels are suspected, and how well each score finds them."""
    return report.Section(
        "Which labels are suspected",
        suspects_sentence(scores),
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
            for row in evaluate_scores(scores)
        ],
        pictures=pictures,
        links=links or {},
    )


def key_numbers(scores: ExampleScores) -> dict[str, float]:
    """How well the combined ranking finds the labels known to be wrong."""
    rows = evaluate_scores(scores)
    if not rows:
        return {}
    return {
        "wrong labels: AUROC": rows[0]["auroc"],
        "wrong labels: average precision": rows[0]["average_precision"],
        "wrong labels: right suggestions": suggestions_right(scores)[0],
    }


def suspects_sentence(scores: ExampleScores) -> str:
    """What was found, in a few sentences."""
    suspects = scores.suspects()
    text = (
        f"{len(suspects)} of {len(scores.label)} training labels are "
        "suspected: without the memory of the example, and corrected for the "
        "shares of the classes, another label is more probable. "
        f"{len(scores.suspects(at_least=0.5))} are more likely wrong than "
        "right (a suspicion of one half or more)."
    )
    whole = [
        str(c)
        for c in np.unique(scores.label)
        if scores.is_suspect[scores.label == c].mean() > 0.5
    ]
    if whole:
        text += (
            " More than half of the labels of each of these classes: "
            f"{', '.join(whole)}. Not so many are likely to be wrong: what was "
            "learned without memory is too little to judge them by. Train "
            "longer, raise p_gen, or give the true shares (prior)."
        )
    wrong = int((scores.label != scores.true_label).sum())
    if not wrong:
        return text
    hits = sum(row["label"] != row["true_label"] for row in suspects)
    right, low, high = suggestions_right(scores)
    return (
        f"{text} {hits} of the suspects are among the {wrong} that are known "
        f"to be wrong; for {right:.1%} [{low:.1%}, {high:.1%}] of the wrong "
        "labels the suggestion is the true one. Calibration error of the "
        f"suspicion: {calibration_error(scores):.1%} (in ten bins; 0 is "
        "perfect). Brackets are 95% bootstrap intervals over examples."
    )
