"""The tables of text, of injection and of membership, and a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.removal_tables import grouped, interval
from tfmemloc import report
from tfmemloc.audits.membership import strongest
from tfmemloc.report import figures
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


def sources(rows: Rows) -> str:
    """A row for each network and behaviour, means over seeds."""
    shown = []
    for row in rows:
        losses = {
            name: _with_interval(row, name)
            for name in ("source_loss", "others_loss", "new_loss")
        }
        names = {name: row[name] for name in ("network", "inference")}
        shown.append({**names, **losses})
    return _fenced(Table(shown))


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


def draw_injection(
    found: Mapping[str, Rows],
    removals: Rows,
    settings: Mapping[str, str],
    path: os.PathLike,
) -> None:
    """Does who finds planted units also take natural memories out?

    Args:
        found: what `benchmarks.injection` keeps.
        removals: the rows of `benchmarks.removal`.
        settings: name of a network here -> its name there, if it has one.
        path: of the picture.
    """
    drawing, (deletion, edit) = figures.side_by_side(
        "recall of planted units (%)",
        ["others' labels kept, less own", "taken out by one edit (%)"],
    )
    for k, model in enumerate(dict.fromkeys(r["model"] for r in found["rows"])):
        recall = _means(found["rows"], model, lambda row: row["recall"])
        style = {
            **figures.series(k),
            "linestyle": "",
            "label": model,
        }
        spared = _means(
            found["deletion"], model, lambda row: row["memorized"] - row["own"]
        )
        if spared:
            names = sorted(spared)
            deletion.plot(
                [100 * recall[name] for name in names],
                [100 * spared[name] for name in names],
                **style,
            )
        taken = _taken_out(removals, settings.get(model))
        if taken is not None:
            edit.plot(100 * max(recall.values()), 100 * taken, **style)
    edit.set_xlabel("recall of the best ranking (%)")
    edit.set_ylim(0, 105)
    for axes in (deletion, edit):
        axes.legend(fontsize=7)
    drawing.savefig(path, dpi=150)


def _means(rows: Rows, model: str, value) -> dict[str, float]:
    """The mean of a value over the shares and seeds of each ranking."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["model"] == model:
            found.setdefault(row["ranking"], []).append(value(row))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _taken_out(removals: Rows, setting: str | None) -> float | None:
    """The share of known wrong labels that one cut takes; None: no such row."""
    noisy = {
        (row["method"], row["seed"]): row["noisy"]
        for row in removals
        if row["setting"] == setting
    }
    shares = [
        1 - after / noisy["before", seed]
        for (method, seed), after in noisy.items()
        if method == "curvature edit" and ("before", seed) in noisy
    ]
    return float(np.mean(shares)) if shares else None


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


def worst_group(rows: Rows) -> str:
    """Accuracy of the usual and of the other examples, over seeds."""
    shown = []
    keys = ("data", "model", "inference")
    for (data, model, how), found in grouped(rows, *keys).items():
        if how == "expected":
            continue
        line: dict[str, Any] = {
            "data": data,
            "network": f"{model} {'' if how == 'plain' else how}".rstrip(),
            "seeds": len({row["seed"] for row in found}),
        }
        for group in ("usual", "other"):
            own = [row for row in found if row["group"] == group]
            line[group] = interval([row["accuracy"] for row in own])
            line[f"{group}, lost"] = interval([row["lost"] for row in own])
        shown.append(line)
    return _fenced(Table(shown))
