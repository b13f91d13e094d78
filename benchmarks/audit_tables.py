"""The tables of text, of injection and of membership."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfmemloc import report
from tfmemloc.audits.membership import strongest
from tfmemloc.result import Table

Rows = Sequence[dict[str, Any]]


def _fenced(table: Table) -> str:
    return f"```\n{report.text_table(table)}\n```\n"


def text(rows: Rows) -> str:
    """A row for each network and behaviour, means over seeds."""
    shown = []
    for row in rows:
        shown.append(
            {
                "model": row["model"],
                "inference": row["inference"],
                "heldout_loss": _with_interval(row, "heldout_loss"),
                "repeated_loss": row["repeated_loss"],
                "gap_closed": row["gap_closed"],
                "canary_loss": row["canary_loss"],
                "canaries_extracted": row["canaries_extracted"],
                "exposure": row["exposure"],
            }
        )
    formats = {"canaries_extracted": ".0%", "exposure": ".1f"}
    return _fenced(Table(shown, formats=formats, default=".3f"))


def _with_interval(row: dict[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None:
        return f"{row[name]:.3f}"
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def injection(rows: Rows) -> str:
    """A row for each network and ranking, the best ranking first."""
    shown = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        shares = sorted({row["k"] for row in own})
        by = {(row["ranking"], row["k"]): row for row in own}
        names = sorted(
            {row["ranking"] for row in own},
            key=lambda name: -sum(by[name, k]["recall"] for k in shares),
        )
        for name in names:
            line: dict[str, Any] = {"model": model, "ranking": name}
            for k in shares:
                row = by[name, k]
                line[f"recall@{k:.0%}"] = (
                    f"{row['recall']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
                )
            line["seconds"] = by[name, shares[0]]["seconds"]
            line["items"] = by[name, shares[0]]["items"]
            shown.append(line)
        line = {"model": model, "ranking": "(possible)"}
        for k in shares:
            line[f"recall@{k:.0%}"] = f"{by[names[0], k]['possible']:.1%}"
        shown.append({**line, "seconds": None, "items": None})
    return _fenced(Table(shown, formats={"seconds": ".2f"}))


def membership(found: dict[str, Any]) -> str:
    """The strongest attack on each network, at each rate, by part."""
    shown = []
    parts = found["parts"]
    attacks = strongest(parts)
    rates = sorted({row["fpr"] for row in parts}, reverse=True)
    for network in dict.fromkeys(row["network"] for row in parts):
        for part in ("all", "clean", "noisy"):
            line: dict[str, Any] = {"network": network, "examples": part}
            for rate in rates:
                best = attacks[network, part, rate]
                few = "" if best["enough"] else " (few)"
                line[f"TPR at {rate:.1%} FPR"] = (
                    f"{best['tpr']:.1%} [{best['low']:.1%}, "
                    f"{best['high']:.1%}] {best['attack']}{few}"
                )
            line["test"] = found["test_accuracy"].get(network)
            shown.append(line)
    return _fenced(Table(shown))
