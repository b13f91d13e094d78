"""Gathers main jobs on text that differ in the seed into one table.

  python -m benchmarks.text --run_dirs='runs/text_*'

Each of them is made by binaries.localize --dataset=stdlib --seed=N --controls.
Writes docs/results/text.json: `seeds`, the rows of each, and `rows`, the means.
"""

from __future__ import annotations

import glob
import pathlib
from typing import Any

import numpy as np

from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import report, storage
from tfmemloc.result import or_none
from tfmemloc.statistics import t_interval

RESULTS = pathlib.Path("docs") / "results" / "text.json"
FLAGS = flags.FLAGS
_WITH_INTERVAL = ("heldout_loss", "gap_closed")


def main() -> None:
    """Reads the summaries, writes the means."""
    found = {}
    for folder in sorted(glob.glob(FLAGS.run_dirs)):
        summary = storage.read_json(pathlib.Path(folder) / "summary.json")
        seed = summary["config"]["training"]["seed"]
        found[str(seed)] = summary["rows"]
    if not found:
        raise ValueError(
            f"--run_dirs: there is no main job in {FLAGS.run_dirs!r}."
        )
    rows = means(list(found.values()))
    storage.write_json(FLAGS.results, {"seeds": found, "rows": rows})
    print(report.text_table(rows, percent=False))


def means(seeds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The mean of each number over seeds, row by row."""
    rows = []
    for k, first in enumerate(seeds[0]):
        of_seeds = [rows_of[k] for rows_of in seeds]
        row: dict[str, Any] = {}
        for name, value in first.items():
            if isinstance(value, str):
                row[name] = value
                continue
            values = [each[name] for each in of_seeds]
            known = None not in values
            row[name] = float(np.mean(values)) if known else None
            if known and name in _WITH_INTERVAL:
                ends = t_interval(np.array(values))
                row[f"{name}_low"], row[f"{name}_high"] = map(or_none, ends)
        rows.append(row)
    return rows


if __name__ == "__main__":
    flags.flags.DEFINE_string("run_dirs", "runs/text_*", "A pattern.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
