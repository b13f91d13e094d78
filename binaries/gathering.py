"""Finds what programs left in a directory, and makes sections of it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfmemloc import label_errors, report, storage
from tfmemloc.localization import NETWORKS
from tfmemloc.results import (
    CriticalUnits,
    ExampleScores,
    GradientAccounting,
    LayerRetraining,
    LayerRewinding,
    Localization,
    Result,
    SweepResults,
)
from tfmemloc.runs import Run

# Name of the files of a probe -> type of the result, its section.
PROBES: Mapping[str, tuple[type[Result], Callable[[Any], report.Section]]] = {
    "gradient_accounting": (GradientAccounting, report.gradient_section),
    "layer_rewinding": (LayerRewinding, report.rewinding_section),
    "layer_retraining": (LayerRetraining, report.retraining_section),
    "critical_units": (CriticalUnits, report.critical_section),
}
# Networks whose critical units are compared, as `own_units_<name>`.
OWN_UNITS = ("example_tied", "standard_dropout")


def is_main_job(directory: pathlib.Path) -> bool:
    """Whether `binaries.localize` finished its networks there."""
    return (directory / "localization.json").exists()


def main_job(directory: pathlib.Path) -> Localization:
    """The headline result of `binaries.localize`."""
    return Localization.load(directory / "localization")


def probes_of(directory: pathlib.Path) -> dict[str, Result]:
    """The results of probes in a directory, by name."""
    return {
        name: kind.load(directory / name)
        for name, (kind, _) in PROBES.items()
        if (directory / f"{name}.json").exists()
    }


def own_units_of(directory: pathlib.Path) -> dict[str, CriticalUnits]:
    """The searches for an example's own units, by network."""
    return {
        name: CriticalUnits.load(directory / f"own_units_{name}")
        for name in OWN_UNITS
        if (directory / f"own_units_{name}.json").exists()
    }


def scores_of(directory: pathlib.Path) -> ExampleScores | None:
    """The scores of the training examples, if they were made."""
    if not (directory / "example_scores.json").exists():
        return None
    return ExampleScores.load(directory / "example_scores")


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
        directory: of a main job, a run, a sweep or a probe.
        page_directory: where the page will lie, for links; None: there.

    Raises:
        DamagedFileError: a result is not what was written.
    """
    sections = []
    histories = histories_of(directory)
    if is_main_job(directory):
        sections.append(
            report.localization_section(main_job(directory), histories)
        )
    elif histories:
        sections.append(report.history_section(histories))
    if (directory / "sweep_results.json").exists():
        sections.append(
            report.sweep_section(SweepResults.load(directory / "sweep_results"))
        )
    sections += [
        PROBES[name][1](result) for name, result in probes_of(directory).items()
    ]
    own = own_units_of(directory)
    if own:
        sections.append(report.own_units_section(own))
    scores = scores_of(directory)
    if scores is not None:
        page, links = directory / label_errors.PAGE, {}
        if page.exists():
            links["The suspects, with pictures"] = os.path.relpath(
                page, page_directory or directory
            )
        sections.append(label_errors.suspects_section(scores, links=links))
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
    """The few numbers by which main jobs of different seeds are compared."""
    numbers: dict[str, float] = {}
    result = main_job(directory)
    for row in result.rows():
        for subset, value in row.items():
            if isinstance(value, float):
                name = f"{row['model']}, {row['inference']}: {subset}"
                numbers[name.replace("_", " ")] = value
    for name, found in probes_of(directory).items():
        numbers |= report.key_numbers(name, found)
    scores = scores_of(directory)
    if scores is not None:
        numbers |= label_errors.key_numbers(scores)
    return numbers
