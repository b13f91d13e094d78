"""Wrong labels, found and shown: a ranking, a table and a page of pictures."""

from __future__ import annotations

import csv
import io
import os
import pathlib
from typing import Any

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
_SHOWN = 100


def find_label_errors(
    source: Run | ExampleScores,
    examples: Examples,
    directory: str | os.PathLike,
    *,
    shown: int | None = None,
    **options: Any,
) -> ExampleScores:
    """Ranks the training examples by how suspicious their labels are.

    Args:
        source: a run with tied dropout, or scores that were made before.
        examples: the data of the run, or of the scores.
        directory: where `example_scores.npz` and `.json`, `suspects.csv` (all
            training examples, the most suspicious first) and `suspects.html`
            (pictures) are written.
        shown: pictures of so many examples, suspects or not, the most
            suspicious first; None shows the first 100 suspects.
        **options: of `score_examples`.

    Returns:
        The scores. A *suspect* has a suspicion of 0.5 or more: without its
        memory, and after adjustment to the class shares and calibration, the
        network gives the label a probability of at most one half.

    Raises:
        ValueError: the scores are of other examples; see `score_examples`.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> scores = find_label_errors(run, run.examples(), "suspects")
        >>> len(scores.suspects())
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Run):
        source = score_examples(source, examples, **options)
    found = examples.of_ids(source.example_id)
    if (found.label != source.label).any():
        raise ValueError(
            f"The scores are of other labels than those of {examples.name}. "
            "Expected the examples that were scored."
        )
    storage.write_text(directory / TABLE, _csv(source.rows()))
    _write_page(directory / PAGE, source, examples, shown)
    # Last: where the scores are, the page is.
    source.save(directory / "example_scores")
    return source


def _csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _write_page(path, scores, examples: Examples, count: int | None) -> None:
    suspects = (
        scores.suspects()[:_SHOWN] if count is None else scores.rows()[:count]
    )
    pictures = []
    if suspects:
        shown = examples.of_ids([row["example_id"] for row in suspects])
        pictures = [
            (_caption(row, examples), plots.picture(image))
            for row, image in zip(suspects, shown.image, strict=True)
        ]
    report.write_html(
        path,
        f"Suspected labels of {examples.name}",
        [suspects_section(scores, pictures)],
        {"Table": f"{TABLE} lists all training examples."},
    )


def _caption(row: dict[str, Any], examples: Examples) -> str:
    label, suggested = (
        examples.class_name(row[name]) for name in ("label", "suggested")
    )
    return (
        f"id {row['example_id']}: labelled {label}, suggested {suggested} "
        f"(suspicion {row['suspicion']:.0%})"
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
        "suspected: with the memorization units off, their adjusted and "
        "calibrated probability is at most one half."
    )
    if len(suspects) > len(scores.label) / 2:
        text += (
            " More than half: the network knows too little without its "
            "memory to judge. Train longer, or raise p_gen."
        )
    wrong = int((scores.label != scores.true_label).sum())
    if not wrong:
        return text
    hits = sum(row["label"] != row["true_label"] for row in suspects)
    right, low, high = suggestions_right(scores)
    return (
        f"{text} {hits} of them are among the {wrong} that are known to be "
        f"wrong; for {right:.1%} [{low:.1%}, {high:.1%}] of the wrong labels "
        "the suggestion is the true one. The suspicion is off by "
        f"{calibration_error(scores):.1%} on average (calibration error in "
        "ten bins); brackets are 95% bootstrap intervals over examples."
    )
