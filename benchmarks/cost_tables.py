"""The table of `benchmarks.costs`."""

from __future__ import annotations

from typing import Any

from benchmarks.removal_tables import Rows, fenced, grouped

# Stage -> its column.
_STAGES = {
    "epoch, none": "epoch",
    "epoch, example_tied": "tied epoch",
    "edit": "edit",
    "ranking": "ranking",
    "search of 128": "search of 128",
    "report": "report",
}


def seconds(rows: Rows) -> str:
    """A row for each network and size: seconds of each stage."""
    return fenced([_seconds_of(found) for found in _cases(rows)])


def memory(rows: Rows) -> str:
    """A row for each network and size: megabytes, in memory and on disk."""
    return fenced([_bytes_of(found) for found in _cases(rows)])


def _cases(rows: Rows) -> list[Rows]:
    return list(grouped(rows, "network", "width", "examples").values())


def _case(found: Rows) -> dict[str, Any]:
    first = found[0]
    return {
        "network": f"{first['network']} x {first['width']:g}",
        "examples": f"{first['examples']:,}",
    }


def _seconds_of(found: Rows) -> dict[str, Any]:
    by = {row["stage"]: row["seconds"] for row in found}
    return {
        **_case(found),
        **{
            column: f"{by[stage]:.1f}"
            for stage, column in _STAGES.items()
            if stage in by
        },
    }


def _bytes_of(found: Rows) -> dict[str, Any]:
    by = {row["stage"]: row for row in found}

    def megabytes(value: int) -> str:
        return f"{value / 1e6:.1f}"

    peak = max(row["peak"] for row in found)
    return {
        **_case(found),
        "peak": megabytes(peak),
        "run folder": megabytes(by["epoch, example_tied"]["written"]),
        "review page": megabytes(by["ranking"]["written"]),
        "report page": megabytes(by["report"]["written"]),
    }
