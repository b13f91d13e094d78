"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from tfmemloc.result import Row, Table


def text_table(rows: Sequence[Row] | Table, *, percent: bool = True) -> str:
    """Rows as aligned text.

    Args:
        rows: dicts with the same keys, or a table with formats of its own.
        percent: of rows without formats: floats are fractions of 1, to be
            shown as per cent.

    Example:
        >>> print(text_table([{"model": "standard", "noisy": 1.0}]))
        model      noisy
        standard  100.0%
    """
    table = rows
    if not isinstance(table, Table):
        table = Table(rows, default=".1%" if percent else ".3g")
    if not table.rows:
        return ""
    columns = table.columns
    cells = [columns] + [
        [table.cell(row, column) for column in columns] for row in table.rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [table.is_text(column) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)
