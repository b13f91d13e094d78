"""Tables and figures of `benchmarks.label_errors` and `label_rates`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.removal_tables import Rows, fenced, grouped, interval
from tfmemloc import report
from tfmemloc.report import figures
from tfmemloc.result import Table

# Ours first, what they are made of, then rivals by what they are made of.
_ORDER = (
    *("ordinary_combined", "tied_combined", "left_out"),
    *("edited", "moved", "ordinary_csl"),
    *("dropped_margin", "disagreement", "tied_gap"),
)
_OURS = _ORDER[:3]
_PERCENT = "average_precision"
# A bin of fewer labels says nothing.
_FEWEST = 20


def _sorted(names: Sequence[str]) -> list[str]:
    rest = [name for name in names if name not in _ORDER]
    rest.sort(key=lambda name: not name.startswith("cleanlab"))
    return [name for name in _ORDER if name in names] + rest


def _mean(part: Rows, name: str, digits: int = 1) -> str:
    return f"{np.mean([row[name] for row in part]):.{digits}f}"


def _over_half(part: Rows) -> str:
    """Of the labels that are more likely wrong than right, how many are."""
    wrong, all_ = (
        sum(row[name] for row in part)
        for name in ("over_half_wrong", "over_half")
    )
    return f"{wrong} of {all_}"


def of_rows(rows: Rows) -> str:
    """Average precision of each score by kind of noise, in percent."""
    return report.text_table(Table(_errors(rows)))


def errors(rows: Rows) -> str:
    """The same, fenced."""
    return fenced(_errors(rows))


def _errors(rows: Rows) -> Rows:
    found = grouped(rows, "score", "noise")
    kinds = list(dict.fromkeys(row["noise"] for row in rows))
    lines = []
    for name in _sorted(list(dict.fromkeys(row["score"] for row in rows))):
        mine = {kind: found.get((name, kind), []) for kind in kinds}
        costs = [row["cost"] for part in mine.values() for row in part]
        lines.append(
            {
                "score": name,
                **{
                    kind: interval([row[_PERCENT] for row in part])
                    if part
                    else ""
                    for kind, part in mine.items()
                },
                "cost": f"{statistics.median(costs):.2f}",
            }
        )
    return lines


def said(rows: Rows) -> str:
    """What our rankings say beside the order: suggestions, suspicion."""
    rows = [row for row in rows if row["score"] in _OURS]
    lines = []
    for (noise, name), part in grouped(rows, "noise", "score").items():
        kinds = sorted({row["noise_found"] for row in part})
        lines.append(
            {
                "noise": noise,
                "ranking": name,
                "suggestion_right": interval(
                    [row["suggestion_right"] for row in part]
                ),
                "noise found": ", ".join(kinds),
                "calibration_error": interval(
                    [row["calibration_error"] for row in part]
                ),
                "sum / wrong": _mean(part, "suspicion_sum", 2),
                "over one half": _over_half(part),
            }
        )
    return fenced(lines)


def real(rows: Rows) -> str:
    """How many of the first labels are really wrong."""
    found = grouped(rows, "score")
    names = _sorted([name for (name,) in found])
    lines = [
        {
            "score": name,
            "average_precision": interval(
                [row[_PERCENT] for row in found[name,]]
            ),
            **{
                f"of {k}": _mean([r["wrong_of_first"] for r in found[name,]], k)
                for k in ("20", "50", "100", "200")
            },
            "cost": f"{statistics.median(r['cost'] for r in found[name,]):.2f}",
        }
        for name in names
    ]
    return fenced(lines)


def rates(rows: Rows) -> str:
    """What is said of data with so many wrong labels, without a network."""
    lines = []
    for (name, rate), part in grouped(rows, "data", "rate").items():
        lines.append(
            {
                "data": name,
                "wrong": f"{rate:.0%}",
                "seeds": len(part),
                "found": interval([row["found"] for row in part]),
                "calibration_error": interval(
                    [row["calibration_error"] for row in part]
                ),
                _PERCENT: interval([row[_PERCENT] for row in part])
                if rate
                else "",
                "over one half": _over_half(part),
            }
        )
    return fenced(lines)


def draw_precision(rows: Rows, path: os.PathLike) -> None:
    """Precision against rank: the share of wrong labels among the first."""
    drawing = figures.Drawing(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    found = grouped(rows, "score")
    shown = (
        *("ordinary_combined", "left_out", "edited", "ordinary_csl"),
        *("cleanlab_averaged", "cleanlab_early", "cleanlab_neighbours"),
    )
    for place, name in enumerate(n for n in shown if (n,) in found):
        part = [row["wrong_of_first"] for row in found[name,]]
        ranks = sorted(map(int, part[0]))
        share = [
            100 * np.mean([row[str(k)] for row in part]) / k for k in ranks
        ]
        axes.plot(ranks, share, label=name, **figures.series(place))
    axes.set_xscale("log")
    axes.set_xlabel("labels looked at, the most suspicious first")
    axes.set_ylabel("of them wrong (%)")
    axes.legend(fontsize=7)
    figures.plain_axes(axes)
    drawing.savefig(path, dpi=150)


def draw_reliability(rows: Rows, path: os.PathLike) -> None:
    """How many labels of a suspicion are wrong; the diagonal is perfect."""
    drawing = figures.Drawing(figsize=(4.6, 4.2), layout="constrained")
    axes = drawing.subplots()
    axes.plot([0, 100], [0, 100], color="0.8", zorder=0)
    by_data = grouped([row for row in rows if row["rate"] > 0], "data")
    for place, ((name,), part) in enumerate(by_data.items()):
        bins = np.array([row["bins"] for row in part]).sum(axis=0)
        count, suspicion, wrong = bins.T
        used = count >= _FEWEST
        axes.plot(
            100 * suspicion[used] / count[used],
            100 * wrong[used] / count[used],
            label=name,
            **figures.series(place),
        )
    axes.set_xlabel("suspicion (%), in ten bins")
    axes.set_ylabel("of them wrong (%)")
    axes.legend(fontsize=8)
    figures.plain_axes(axes)
    drawing.savefig(path, dpi=150)
