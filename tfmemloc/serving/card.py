"""The model card: what was exported, and how it measures."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmemloc import configs, evaluation, graph, storage
from tfmemloc.audits.membership import strongest
from tfmemloc.data.chunks import chunk_at
from tfmemloc.data.examples import Examples, input_kinds
from tfmemloc.runs import Run
from tfmemloc.serving.endpoint import CHECKED, examples_as_given
from tfmemloc.serving.pruning import pruning_plan

CARD = "model_card.json"


def write_card(
    folder, source, *, models, accuracy, examples, options, checked, audit
) -> None:
    """The model card, of numbers measured on the files in the folder."""
    is_run = isinstance(source, Run)
    model, shown, served = (models[k] for k in ("trained", "shown", "served"))
    card = {
        "version": 1,
        "model": model.name,
        "options": options,
        "run": _run_facts(source) if is_run else None,
        "data": {
            "name": examples.name,
            "classes": examples.classes,
            "noise_rate": _noise_rate(examples),
            "fingerprint": examples.fingerprint(),
        },
        "takes": _takes(examples, options["raw_pixels"]),
        "accuracy": accuracy,
        "size": {
            "parameters_before": model.count_params(),
            "parameters_after": served.count_params(),
            "saved_model_bytes": sum(
                file.stat().st_size
                for file in folder.rglob("*")
                if file.is_file()
            ),
        },
        "milliseconds_for_64": {
            "before": _milliseconds(shown, examples),
            "after": _milliseconds(served, examples),
        },
        "check": checked,
        "audit": audit.rows() if audit is not None else [],
        "layers": (
            pruning_plan(graph.with_inference(model, "drop"))
            if options["pruned"]
            else []
        ),
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "python": platform.python_version(),
        },
    }
    storage.write_json(folder / CARD, card)
    storage.write_text(folder / "MODEL_CARD.md", card_text(card))


def _run_facts(run: Run) -> dict[str, Any]:
    parts = {
        "data": run.data,
        "model": run.model_config,
        "training": run.training,
    }
    facts = {
        name: configs.to_json(part) if part is not None else None
        for name, part in parts.items()
    }
    if facts["data"] is not None:
        # The path of the data is not published.
        del facts["data"]["data_dir"]
    return {"epoch": max(run.epochs, default=None), **facts}


def _takes(examples: Examples, raw_pixels: bool) -> list[str]:
    """What the endpoint takes, input by input."""
    words = {
        "picture": "float32 pixels in [-1, 1] (uint8 / 127.5 - 1)",
        "tokens": "integer tokens",
        "features": "numbers as in training",
    }
    if raw_pixels:
        words["picture"] = "uint8 pixels"
    return [
        f"{words[kind]} {list(examples.inputs[name].shape[1:])}"
        for name, kind in input_kinds(examples).items()
    ]


def _noise_rate(examples: Examples) -> float:
    """The share of training labels that are not the true ones."""
    train = examples.train
    if not len(train):
        return 0.0
    return float(np.mean(train.label != train.true_label))


def accuracies(serve, served, model, examples, raw) -> list[dict[str, Any]]:
    """Accuracy of each subset, as trained and as it is served."""
    before = "tied" if graph.tied_layers(model) else "plain"
    as_trained = evaluation.evaluate(
        evaluation.inference_models(model)[before], examples
    )
    parts = []
    for start in range(0, len(examples), CHECKED):
        places = np.arange(start, min(start + CHECKED, len(examples)))
        given = examples_as_given(served, examples, places, raw)
        outputs = serve(**given)["probabilities"].numpy()
        parts.append(evaluation.measured(outputs, examples, places))
    as_served = evaluation.joined_metrics(parts, examples)
    return [
        {
            "subset": old["subset"],
            "examples": old["count"],
            "before": old["accuracy"],
            "after": new["accuracy"],
            "true_label_before": old["true_accuracy"],
            "true_label_after": new["true_accuracy"],
        }
        for old, new in zip(as_trained.rows(), as_served.rows(), strict=True)
    ]


def _milliseconds(model: keras.Model, examples: Examples) -> float:
    """Median time of a batch of 64 on this machine."""
    predict = evaluation.Predictor(model)
    rows = np.resize(np.arange(len(examples)), 64)
    inputs = chunk_at(examples, rows).inputs
    predict(inputs)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        predict(inputs).numpy()
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def _audit_text(rows: list[dict[str, Any]]) -> str:
    """The strongest attack on each network at each rate."""
    if not rows:
        return ""
    lines = "\n".join(
        f"| {row['network']} | {row['attack']} | {row['fpr']:.1%} | "
        f"{row['tpr']:.1%} [{row['low']:.1%}, {row['high']:.1%}] | "
        f"{'' if row['enough'] else 'too few others for this rate'} |"
        for row in strongest(rows).values()
    )
    return f"""
What membership inference finds in networks that were made in the same way, each
on a random part of the data (the strongest attack; 95 % intervals):

| network | attack | others accused | members found | |
|---|---|---|---|---|
{lines}
"""


def card_text(card: Mapping[str, Any]) -> str:
    """A model card as Markdown."""
    options, size = card["options"], card["size"]
    speed, data = card["milliseconds_for_64"], card["data"]
    behaviour = {
        "drop": "memorization units left out",
        "expected": "memorization units scaled by their probability",
        "plain": "as trained, without tied layers",
    }[options["inference"]]
    done = [behaviour]
    if options["pruned"]:
        done.append("pruned")
    if options["folded"]:
        done.append("BatchNorm folded")
    if options["recalibrated"]:
        done.append("BatchNorm statistics recomputed")
    accuracy = "\n".join(
        f"| {row['subset']} | {row['examples']} | {row['before']:.1%} | "
        f"{row['after']:.1%} | {row['true_label_after']:.1%} |"
        for row in card["accuracy"]
    )
    wrong = (
        f"{data['noise_rate']:.1%} of the training labels are known wrong."
        if data["noise_rate"]
        else "No training label is known to be wrong; some may be."
    )
    versions = ", ".join(f"{k} {v}" for k, v in card["versions"].items())
    takes = ", ".join(card["takes"])
    return f"""# {card["model"]}: {", ".join(done)}

Trained on {data["name"]} ({data["classes"]} classes). {wrong}
It takes {takes}.

| subset | examples | accuracy as trained | as served | true label, served |
|---|---|---|---|---|
{accuracy}

Accuracy is of the labels trained on; of wrong labels, less is better.
{_audit_text(card["audit"])}
- Parameters: {size["parameters_before"]:,} before,
  {size["parameters_after"]:,} after; {size["saved_model_bytes"]:,} bytes.
- A batch of 64: {speed["before"]:.2f} ms before, {speed["after"]:.2f} ms after,
  on the machine that exported.
- Checked against the network it came from on {card["check"]["examples"]}
  {"real" if card["check"]["real"] else "random"} examples: outputs differ by
  {card["check"]["largest_relative_difference"]:.1e} of the largest.
- Made with {versions}.

`{CARD}` holds all numbers, the data's fingerprint, and what pruning did to
each layer.
"""
