"""A removal written into a folder: the new network as a run, and its labels."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras

from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Examples,
    Removal,
    Run,
    configs,
    find_label_errors,
    remove_memory,
    storage,
)
from tfmemloc.labels.by_removal import Edited, course_of, scores_of_edited
from tfmemloc.result import Result, is_result

RESULT, MODEL, WORK = "removal", "model.keras", "work"


# () -> the new network, and what was done.
Remove = Callable[[], tuple[keras.Model, Removal]]


def by_curvature(
    source: Run | keras.Model,
    examples: Examples,
    config: CurvatureConfig,
    work: pathlib.Path,
) -> tuple[dict[str, Any], Remove]:
    """The settings of a removal by curvature, and what does it."""
    settings = {"method": "curvature", **configs.to_json(config)}
    return settings, lambda: remove_memory(
        source, examples, config, directory=work, progress=True
    )


def keep_removal(
    out: pathlib.Path,
    source: Run | keras.Model,
    examples: Examples,
    remove: Remove,
    *,
    settings: Mapping[str, Any],
    data: DataConfig | None,
) -> Removal:
    """Takes the memory out of a network; a finished job is read back.

    Args:
        out: gets the networks before (epoch 0) and after (epoch 1) as a run,
            the latter as `model.keras`, and the result.
        source: the network.
        examples: those that it was trained on.
        remove: does it.
        settings: of the removal, as json.
        data: where the examples come from.

    Raises:
        ValueError: the folder holds something else, or a job with other
            settings.
    """
    is_run = isinstance(source, Run)
    original = source.model() if is_run else source
    _keep_settings(out, original, examples, settings)
    if is_result(out / RESULT):
        return Result.load(out / RESULT)
    edited, result = remove()
    run = Run.create(
        out,
        edited,
        data=data,
        model_config=source.model_config if is_run else None,
        examples=examples,
    )
    run.record_epoch(original, 0)
    run.record_epoch(edited, 1)
    storage.write_atomically(
        out / MODEL, lambda file: _save_keras(edited, file)
    )
    # Last of all: where the result is, all else is, too.
    result.save(out / RESULT)
    return result


def rank_labels(
    out: pathlib.Path, source: Run | keras.Model, examples: Examples
) -> int | None:
    """Ranks the labels by an edited network, in its folder.

    Args:
        out: of the edited network.
        source: the network as it was trained, perhaps with its recording.
        examples: those it was trained on.

    Returns:
        How many it does not believe; None where each position has a label.
    """
    if examples.label.ndim > 1:
        return None
    run = Run.open(out)
    before, after = run.model(0), run.model(1)
    recorded = course_of(source, before, examples)
    scores = scores_of_edited([Edited(before, after, recorded)], examples)
    scores = find_label_errors(scores, examples, out)
    return int(scores.is_suspect.sum())


def _keep_settings(out, original, examples, settings) -> None:
    """Refuses a folder with other files, or with another job's results."""
    path = out / "settings.json"
    wanted = {
        "config": settings,
        "weights": storage.digest(original.get_weights()),
        "examples": examples.fingerprint(),
        "subsets": storage.digest([examples.subset]),
    }
    if path.exists():
        there = storage.read_json(path)
        # As they are read back: a tuple is a list there.
        wanted = json.loads(json.dumps(wanted))
        wrong = [name for name in wanted if there.get(name) != wanted[name]]
        if wrong:
            raise ValueError(
                f"{out} holds a removal with other {' and '.join(wrong)}, "
                "which is not overwritten. Expected another folder. In "
                "binaries.remove that is --out_dir; with "
                f"--work_dir={out / WORK} factors need not be computed again."
            )
        return
    # Other workers keep their factors and logs in its working folder already.
    found = {item.name for item in out.iterdir()} - {".lock", WORK}
    if found:
        raise ValueError(
            f"{out} is not the folder of a removal, and nothing in it is "
            "overwritten. Expected a new --out_dir. Received one with "
            f"{', '.join(sorted(found)[:5])}."
        )
    storage.write_json(path, wanted)


def _save_keras(model: keras.Model, file) -> None:
    """Keras wants a path that ends in .keras."""
    path = pathlib.Path(file.name).with_suffix(".keras")
    model.save(path)
    file.write(path.read_bytes())
    path.unlink()
