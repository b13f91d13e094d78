"""Decisions about labels, as a page saved them, applied to the data.

    example_id,label,decision,new_label

`decision` is `keep`, `accept` (the suggestion), `other` (another class) or
`unsure`; `label` is the one that was shown, and must still be the example's.
"""

from __future__ import annotations

import csv
import os

import numpy as np

from tfmemloc.data.examples import Examples
from tfmemloc.data.labels import correct_labels

COLUMNS = ("example_id", "label", "decision", "new_label")
DECISIONS = ("keep", "accept", "other", "unsure")


def read_decisions(path: str | os.PathLike) -> list[dict[str, int | str]]:
    """The rows of a table of decisions, checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header or a line is not as expected, an example
            occurs twice, or there is none.
    """
    # Spreadsheets write a mark at the beginning and empty lines at the end.
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise ValueError(
                f"{path} expected the header {','.join(COLUMNS)!r}. Received: "
                f"{','.join(header)!r}."
            )
        rows: dict[int, dict] = {}
        for line, values in enumerate(reader, start=2):
            if not any(values):
                continue
            row = _checked_row(path, line, values)
            if row["example_id"] in rows:
                raise ValueError(
                    f"{path}, line {line}: id {row['example_id']} occurs "
                    "twice. Expected one line for each example."
                )
            rows[row["example_id"]] = row
    if not rows:
        raise ValueError(
            f"{path} holds no decision. Expected a line for each label that "
            "was decided about."
        )
    return list(rows.values())


def _checked_row(path, line: int, values: list[str]) -> dict[str, int | str]:
    try:
        example_id, label, decision, new_label = values
        row = {
            "example_id": int(example_id),
            "label": int(label),
            "decision": decision,
            "new_label": int(new_label),
        }
        is_good = decision in DECISIONS and (
            decision in ("accept", "other") or row["new_label"] == row["label"]
        )
    except ValueError:
        is_good = False
    if not is_good:
        raise ValueError(
            f"{path}, line {line}: expected an integer id, the label, one of "
            f"{', '.join(DECISIONS)}, and the new label, which is the old one "
            f"for keep and unsure. Received: {','.join(values)!r}."
        )
    return row


def apply_decisions(
    examples: Examples,
    decisions: str | os.PathLike,
    *,
    drop_unsure: bool = False,
) -> Examples:
    """Corrects labels by the decisions of a person.

    Args:
        examples: the data that the decisions are about.
        decisions: the `.csv` that the page saved.
        drop_unsure: leave the examples out about which nobody is sure.

    Returns:
        New examples with the new labels; ids and all other labels stay.

    Raises:
        ValueError: an id is not of a training example, a label has changed
            since, or a new one is no class.

    Example:
        >>> first = examples.train.take(np.arange(1))
        >>> row = f"{first.example_id[0]},{first.label[0]},other,3"
        >>> table = "example_id,label,decision,new_label"
        >>> _ = pathlib.Path("decisions.csv").write_text(f"{table}\\n{row}\\n")
        >>> corrected = apply_decisions(examples, "decisions.csv")
        >>> int(corrected.of_ids(first.example_id).label[0])
        3
    """
    rows = read_decisions(decisions)
    ids = np.array([row["example_id"] for row in rows], np.int64)
    shown = np.array([row["label"] for row in rows])
    found = examples.train.of_ids(ids)
    differs = np.flatnonzero(found.label != shown)
    if differs.size:
        first = rows[differs[0]]
        raise ValueError(
            f"{decisions} holds decisions about other data than "
            f"{examples.name}: {differs.size} of {len(rows)} examples have "
            f"another label now. Expected label {first['label']} of id "
            f"{first['example_id']}. Received: {found.label[differs[0]]}."
        )
    corrected = correct_labels(
        examples,
        {
            row["example_id"]: row["new_label"]
            for row in rows
            if row["new_label"] != row["label"]
        },
    )
    unsure = [r["example_id"] for r in rows if r["decision"] == "unsure"]
    if not (drop_unsure and unsure):
        return corrected
    return corrected.take(~np.isin(corrected.example_id, unsure))
