"""Finds the results that programs left in a directory, whatever they are."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

from tfmemloc import report, storage
from tfmemloc.removal import NETWORKS, NetworkComparison
from tfmemloc.result import Result, is_result
from tfmemloc.runs import Run
from tfmemloc.scores.suspects import PAGE
from tfmemloc.training import TrainingHistory

# The headline of a main job, and how version 1 called it.
MAIN, _MAIN_1 = "networks", "localization"
# Which results come first on a page; others follow by their names.
_HEADLINES = (MAIN, _MAIN_1, "sweep_results")
_FIRST = (
    *_HEADLINES,
    "gradient_accounting",
    "layer_rewinding",
    "layer_retraining",
)
_LAST = ("example_scores", "memorization")


def main_path(directory: pathlib.Path) -> pathlib.Path:
    """Where the headline of a main job is or will be, without ending."""
    old = directory / _MAIN_1
    return old if is_result(old) else directory / MAIN


def is_main_job(directory: pathlib.Path) -> bool:
    """Whether `binaries.localize` finished its networks there."""
    return is_result(main_path(directory))


def results_of(directory: pathlib.Path) -> dict[str, Result]:
    """All results in a directory by the name of their files, in order.

    Raises:
        DamagedFileError: a result is not what was written.
    """
    names = [
        path.stem
        for path in sorted(directory.glob("*.json"))
        # The means of a report are no result of the directory.
        if path.stem != "numbers" and is_result(path.with_suffix(""))
    ]
    others = [name for name in names if name not in (*_FIRST, *_LAST)]
    ordered = [*_FIRST, *others, *_LAST]
    return {
        name: Result.load(directory / name) for name in ordered if name in names
    }


def histories_of(directory: pathlib.Path) -> dict[str, Sequence[Mapping]]:
    """The histories of the networks of a main job, or of one run."""
    if (directory / "history.json").exists():
        return {directory.name: Run.open(directory).history}
    return {
        name: Run.open(directory / name).history
        for name in NETWORKS
        if (directory / name / "history.json").exists()
    }


def sections_of(
    directory: pathlib.Path, page_directory: pathlib.Path | None = None
) -> list[report.Section]:
    """The sections of all results in a directory, the headline first.

    Args:
        directory: of a main job, a run, a sweep or a method.
        page_directory: the page's folder, for links; None is `directory`.

    Raises:
        DamagedFileError: a result is not what was written.
    """
    sections = []
    histories = histories_of(directory)
    found = results_of(directory)
    if histories:
        found["history"] = TrainingHistory.of(histories)
        # Behind the headline, if there is one.
        order = [name for name in found if name in _HEADLINES]
        order += ["history", *(n for n in found if n not in order)]
        found = {name: found[name] for name in dict.fromkeys(order)}
    for name, result in found.items():
        links, page = {}, directory / PAGE
        if name == "example_scores" and page.exists():
            links["The suspects, one by one"] = os.path.relpath(
                page, page_directory or directory
            )
        sections.append(report.section_of(result, links=links))
    return sections


def facts_of(directory: pathlib.Path) -> dict[str, str]:
    """What was run, with which versions: name -> text."""
    path = directory / "summary.json"
    facts = storage.read_json(path).get("facts") if path.exists() else None
    if not isinstance(facts, dict):
        return {}
    return {str(key): str(value) for key, value in facts.items()}


def seed_and_rest(directory: pathlib.Path) -> tuple[int, dict]:
    """The seed of a main job, and its settings without seeds and folders."""
    settings = storage.read_json(directory / "settings.json")
    seed = settings["training"]["seed"]
    ignored = ("seed", "noise_seed", "data_dir")
    rest = {
        part: {k: v for k, v in settings[part].items() if k not in ignored}
        for part in ("data", "model", "training")
    }
    return seed, rest


def numbers_of(directory: pathlib.Path) -> dict[str, float]:
    """The key numbers of all results of a main job."""
    numbers: dict[str, float] = {}
    for name, result in results_of(directory).items():
        for key, value in result.key_numbers().items():
            # Two searches may call their numbers alike.
            numbers[f"{name}: {key}" if key in numbers else key] = value
    return numbers


def headline(directory: pathlib.Path) -> NetworkComparison:
    """The networks of a main job."""
    return NetworkComparison.load(main_path(directory))
