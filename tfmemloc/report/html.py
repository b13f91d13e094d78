"""The report as one self-contained HTML page.

The page carries its figures inside, needs no network and no script, and
follows the reader's light or dark setting. Everything that is filled in is
escaped by the template engine.
"""

from __future__ import annotations

import functools
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from tfmemloc import storage
from tfmemloc.report.section import Section, as_address

_TEMPLATES = pathlib.Path(__file__).parent / "templates"


def write_html(
    path: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
) -> None:
    """Writes the report.

    Args:
        path: of the `.html` file.
        title: of the page.
        sections: in order.
        facts: what was run, with which versions: name -> text.
    """
    write_template(
        path, "page.html", title=title, sections=sections, facts=facts
    )


def write_template(
    path: str | os.PathLike, template: str, **values: Any
) -> None:
    """Writes a page from one of the templates of this package.

    Args:
        path: of the `.html` file.
        template: its name.
        **values: what is filled in; it is escaped.
    """
    page = _environment().get_template(template)
    storage.write_text(path, page.render(**values))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["address"] = as_address
    environment.filters["path"] = urllib.parse.quote
    return environment
