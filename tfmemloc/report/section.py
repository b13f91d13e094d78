"""A part of a page: any result, as title, sentence, table and figures."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence

from tfmemloc.result import Figure, Result, Table


@dataclasses.dataclass(frozen=True)
class Card:
    """One example on a page: what it looks like, and what is said of it.

    Attributes:
        lines: the caption.
        png: its picture, where it has one.
        text: its words or numbers, where it has no picture.
        details: numbers that unfold on a click.
    """

    lines: Sequence[str]
    png: bytes = b""
    text: str = ""
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> str:
        """The picture as the address of an <img>."""
        return as_address(self.png)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: what was asked, what came out.

    Attributes:
        title: the heading.
        text: a sentence or a few.
        table: may have no rows.
        figures: name of the file -> caption, PNG.
        cards: examples that are shown.
        links: words -> path from the page.
    """

    title: str
    text: str
    table: Table = dataclasses.field(default_factory=lambda: Table([]))
    figures: Mapping[str, tuple[str, bytes]] = dataclasses.field(
        default_factory=dict
    )
    cards: Sequence[Card] = ()
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)


def section_of(
    result: Result,
    *,
    cards: Sequence[Card] = (),
    links: Mapping[str, str] | None = None,
) -> Section:
    """The section of any result.

    Args:
        result: of any method.
        cards: examples to show.
        links: words -> path from the page.
    """
    return Section(
        result.title,
        result.sentence(),
        result.table(),
        {
            name: (figure.caption, to_png(figure))
            for name, figure in result.figures().items()
        },
        cards,
        links or {},
    )


def to_png(figure: Figure) -> bytes:
    """The drawing of a figure as a PNG file."""
    file = io.BytesIO()
    # No time stamp: the same figure gives the same bytes.
    figure.drawing.savefig(
        file, format="png", dpi=120, metadata={"Software": None}
    )
    return file.getvalue()


def as_address(png: bytes) -> str:
    """A PNG file as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
