"""A removal written into a folder: the new network as a run, and its labels."""

from __future__ import annotations

import json
import os
import pathlib

import keras

from tfmemloc import (
    CurvatureConfig,
    CurvatureEdit,
    DataConfig,
    Examples,
    Run,
    configs,
    find_label_errors,
    predict_logits,
    remove_memory,
    scores_of_logits,
    storage,
)
from tfmemloc.result import Result, is_result

RESULT, MODEL, WORK = "removal", "model.keras", "work"


def edit_network(
    out: pathlib.Path,
    source: Run | keras.Model,
    examples: Examples,
    config: CurvatureConfig,
    *,
    data: DataConfig | None,
    work: str | os.PathLike | None = None,
    progress: bool = True,
) -> CurvatureEdit:
    """Takes the memory out of a network; a finished job is read back.

    Args:
        out: gets the networks before (epoch 0) and after (epoch 1) as a run,
            the latter as `model.keras`, and the result.
        source: the network.
        examples: those that it was trained on.
        config: how.
        data: where the examples come from.
        work: keeps factors and refits, from which a killed job goes on;
            None is the folder `work` in `out`.
        progress: show progress bars.

    Raises:
        ValueError: the folder holds something else, or a job with other
            settings.
    """
    work = pathlib.Path(work or out / WORK)
    is_run = isinstance(source, Run)
    original = source.model() if is_run else source
    _keep_settings(out, work, original, examples, config)
    if is_result(out / RESULT):
        return Result.load(out / RESULT)
    edited, result = remove_memory(
        source, examples, config, directory=work, progress=progress
    )
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


def rank_labels(out: pathlib.Path, examples: Examples) -> int | None:
    """Ranks the labels by an edited network, in its folder.

    Returns:
        How many it does not believe; None where each position has a label.
    """
    train = examples.train
    if train.label.ndim > 1:
        return None
    edited = Run.open(out).model()
    others = examples.take(~examples.is_trained_on)
    held_out = (
        (predict_logits(edited, others), others.label) if len(others) else None
    )
    scores = scores_of_logits(
        train, dropped=predict_logits(edited, train), held_out=held_out
    )
    return len(find_label_errors(scores, examples, out).suspects())


def _keep_settings(out, work, original, examples, config) -> None:
    """Refuses a folder with other files, or with another job's results."""
    path = out / "settings.json"
    wanted = {
        "config": configs.to_json(config),
        "weights": storage.digest(original.get_weights()),
        "labels": storage.digest([examples.example_id, examples.label]),
    }
    if path.exists():
        there = storage.read_json(path)
        # As they are read back: a tuple is a list there.
        wanted = json.loads(json.dumps(wanted))
        wrong = [name for name in wanted if there.get(name) != wanted[name]]
        if wrong:
            raise ValueError(
                f"{out} holds a removal with other {' and '.join(wrong)}, "
                "which is not overwritten. Expected another --out_dir; with "
                f"--work_dir={work} the factors need not be computed again."
            )
        return
    found = {item.name for item in out.iterdir()} - {".lock"}
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
