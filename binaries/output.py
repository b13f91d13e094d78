"""What the programs write: results, figures, one report."""

from __future__ import annotations

import pathlib
import platform
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from binaries import flags
from tfmemloc import report, storage
from tfmemloc.results import Result


def reuse(
    path: pathlib.Path, kind: type[Result], make: Callable[[], Result]
) -> Result:
    """The result saved at `path`, or else a new one, saved there.

    Args:
        path: without ending.
        kind: type of the result.
        make: computes it.
    """
    if path.with_name(path.name + ".json").exists():
        return kind.load(path)
    result = make()
    result.save(path)
    return result


def write_report(
    directory: pathlib.Path,
    title: str,
    sections: Sequence[report.Section],
    module: str,
) -> pathlib.Path:
    """Writes report.html, and its figures as PNG beside it.

    Args:
        directory: where to.
        title: of the page.
        sections: of the page.
        module: of the program, for the command that repeats it.

    Returns:
        The path of the page.
    """
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    for section in sections:
        for name, (_, png) in section.figures.items():
            storage.write_atomically(
                figures / f"{name}.png", lambda file, png=png: file.write(png)
            )
    gpus = len(tf.config.list_physical_devices("GPU"))
    path = directory / "report.html"
    report.write_html(
        path,
        title,
        sections,
        {
            "Command": flags.command_line(module),
            "Versions": f"TensorFlow {tf.__version__}, "
            f"Keras {keras.__version__}, Python {platform.python_version()}",
            "Machine": f"{platform.system()} {platform.machine()}, {gpus} GPUs",
        },
    )
    return path


def write_probe(
    result: Result,
    name: str,
    section: report.Section,
    module: str,
    directory: str | None = None,
) -> None:
    """Writes and prints what a probe of the run in --run_dir found.

    Args:
        result: of the probe.
        name: of its files.
        section: of the report.
        module: of the program.
        directory: where to; None is --out_dir, or else --run_dir.
    """
    directory = pathlib.Path(
        directory or flags.FLAGS.out_dir or flags.FLAGS.run_dir
    )
    directory.mkdir(parents=True, exist_ok=True)
    result.save(directory / name)
    page = write_report(directory, section.title, [section], module)
    print_section(section)
    print(f"report: {page}")


def print_section(section: report.Section) -> None:
    """The section as text: its table and its sentence."""
    table = report.text_table(section.rows, percent=section.percent)
    print(f"\n{section.title}")
    if table:
        print(table)
    print(section.text)
