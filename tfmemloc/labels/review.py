"""A page on which a person decides about the labels, example by example.

One file without a server: pictures, texts or rows with the given label and the
suggested one, decided by keys, kept by the browser, saved as a table that
`apply_decisions` reads.
"""

from __future__ import annotations

import base64
import os
import pathlib
from typing import Any

from tfmemloc import report
from tfmemloc.data.examples import Examples
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.suspects import appearance

REVIEW = "review.html"
# A page of so many pictures still opens at once; and where errors are rare,
# the top of the ranking is looked at, suspected or not.
_MOST, _LEAST = 1000, 100


def write_review(
    directory: str | os.PathLike,
    scores: ExampleScores,
    examples: Examples,
    count: int | None = None,
) -> pathlib.Path:
    """Writes the page to decide on.

    Args:
        directory: gets `review.html`.
        scores: of the training examples.
        examples: the data.
        count: how many are asked about, the most suspicious first; None asks
            about the suspects, but at least 100 and at most 1,000 examples.

    Returns:
        The path of the page.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if count is None:
        count = min(_MOST, max(_LEAST, int(scores.is_suspect.sum())))
    rows = scores.asked(count)
    shown = examples.of_ids([row["example_id"] for row in rows])
    items = [_item(row, shown, place) for place, row in enumerate(rows)]
    report.write_template(
        directory / REVIEW,
        "review.html",
        title=f"Decide about labels of {examples.name}",
        data={
            # Decisions of other data are not taken for those of these.
            "key": f"{examples.name}:{len(scores.label)}:"
            f"{scores.inputs_digest}",
            "classes": [
                examples.class_name(k) for k in range(examples.classes)
            ],
            "items": items,
            "total": len(scores.label),
        },
    )
    return directory / REVIEW


def _item(row: dict[str, Any], shown: Examples, place: int) -> dict[str, Any]:
    png, text = appearance(shown, place)
    return {
        "id": row["example_id"],
        "label": row["label"],
        "suggested": row["suggested"],
        "suspicion": round(row["suspicion"], 4),
        "png": base64.b64encode(png).decode("ascii"),
        "text": text,
    }
