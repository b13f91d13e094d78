"""What the programs write: results, figures, a report."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence

from . import flags

import keras
import numpy as np
import tensorflow as tf

import tfmemloc
from tfmemloc import report, storage
from tfmemloc.result import Result, is_result


def reuse(path: pathlib.Path, make: Callable[[], Result]) -> Result:
    """The result saved at `path`, or else a new one, saved there.

    Args:
        path: without ending.
        make: computes it.
    """
    if is_result(path):
        return Result.load(path)
    result = make()
    result.save(path)
    return result


def write_report(
    directory: pathlib.Path,
    title: str,
    sections: Sequence[report.Section],
    facts: Mapping[str, str],
    *,
    name: str = "report",
) -> pathlib.Path:
    """Writes a page as HTML and Markdown, and its figures as PNG.

    What the user was warned of stands on the page as well.

    Args:
        directory: where to.
        title: of the page.
        sections: of the page.
        facts: what was run; see `facts`.
        name: of the two files.

    Returns:
        The path of the HTML page.
    """
    figures = directory / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    sections = _with_distinct_figures(sections)
    for section in sections:
        for figure, (_, png) in section.figures.items():
            storage.write_atomically(
                figures / f"{figure}.png", lambda file, png=png: file.write(png)
            )
    if flags.WARNED:
        facts = {"Warning": " ".join(dict.fromkeys(flags.WARNED)), **facts}
    report.write_markdown(directory / f"{name}.md", title, sections, facts)
    path = directory / f"{name}.html"
    report.write_html(path, title, sections, facts)
    return path


def _with_distinct_figures(
    sections: Sequence[report.Section],
) -> list[report.Section]:
    """Sections of which no two give a figure the same file name."""
    count: dict[str, int] = {}
    result = []
    for section in sections:
        figures = {}
        for name, figure in section.figures.items():
            count[name] = count.get(name, 0) + 1
            suffix = f"_{count[name]}" if count[name] > 1 else ""
            figures[name + suffix] = figure
        result.append(dataclasses.replace(section, figures=figures))
    return result


def facts(module: str) -> dict[str, str]:
    """The command that repeats this, the versions, the machine."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    return {
        "Command": flags.command_line(module),
        "Versions": f"tfmemloc {tfmemloc.__version__}, "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}",
        "Machine": f"{platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} CPUs, {gpus} GPUs",
    }


def write_result(
    result: Result,
    name: str,
    module: str,
    directory: pathlib.Path | None = None,
) -> None:
    """Writes and prints what a method found, whichever it is.

    Args:
        result: of the method.
        name: of its files.
        module: of the program.
        directory: where to; None is --out_dir, or else --run_dir.
    """
    directory = pathlib.Path(
        directory or flags.FLAGS.out_dir or flags.FLAGS.run_dir
    )
    directory.mkdir(parents=True, exist_ok=True)
    result.save(directory / name)
    section = report.section_of(result)
    page = write_report(directory, result.title, [section], facts(module))
    print_section(section)
    print(f"report: {page}")


def print_section(section: report.Section) -> None:
    """The section as text: its table and its sentence."""
    table = report.text_table(section.table)
    print(f"\n{section.title}")
    if table:
        print(table)
    print(section.text)


def duration(seconds: float) -> str:
    """Seconds in words, to one digit or two."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
