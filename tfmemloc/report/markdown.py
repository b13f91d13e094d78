"""The report as Markdown, with its figures beside it."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence

from tfmemloc import storage
from tfmemloc.report.section import Section
from tfmemloc.result import Table


def write_markdown(
    path: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    *,
    figures: str = "figures",
) -> None:
    """Writes the report as Markdown.

    Args:
        path: of the `.md` file.
        title: of the page.
        sections: in order.
        facts: what was run, with which versions: name -> text.
        figures: folder of the PNG files, from the page.
    """
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}", _plain(section.text)]
        if section.table.rows:
            parts.append(_table(section.table))
        parts += [
            f"![{_plain(caption)}]({figures}/{name}.png)"
            for name, (caption, _) in section.figures.items()
        ]
        parts += [
            f"[{_plain(words)}]({urllib.parse.quote(target)})"
            for words, target in section.links.items()
        ]
    parts.append("## What was run")
    parts.append(
        "\n".join(
            f"- {_plain(name)}: {_code(text)}" for name, text in facts.items()
        )
    )
    storage.write_text(path, "\n\n".join(parts) + "\n")


def _plain(text: str) -> str:
    """Text that Markdown does not take for markup."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", str(text).replace("\n", " "))


def _code(text: str) -> str:
    """Text as it stands, between more backticks than it has in a row."""
    text = text.replace("\n", " ")
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _table(table: Table) -> str:
    columns = table.columns
    lines = [
        [_plain(column.replace("_", " ")) for column in columns],
        ["---" if table.is_text(column) else "---:" for column in columns],
    ]
    lines += [
        [_plain(table.cell(row, column)) for column in columns]
        for row in table.rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
