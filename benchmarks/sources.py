"""Is a whole source forgotten by dropping its units, as if it was never seen?

  python -m benchmarks.sources --runs_dir=runs/sources

trains a decoder of which one source alone reaches the memory
(`--removable=asyncio`), the same without any window of that source, and a
standard network of the served width on everything; about eight minutes for a
seed on 2 CPU cores, killed, the same command goes on. Writes
docs/results/sources.json: for each network and behaviour the loss, in nats a
token, on the source's windows that were trained on, on other windows that were,
and on new windows of other sources.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    DataConfig,
    Examples,
    ModelConfig,
    TrainConfig,
    load,
    losses,
    predict_logits,
    presets,
    report,
    storage,
    train,
)
from tfmemloc.evaluation import inference_models
from tfmemloc.statistics import t_interval

RESULTS = pathlib.Path("docs") / "results" / "sources.json"
FLAGS = flags.FLAGS


def main() -> None:
    """Trains, measures, writes."""
    seeds = [int(seed) for seed in FLAGS.seeds]
    found = [_measured(seed) for seed in seeds]
    rows = [
        _together([each[k] for each in found]) for k in range(len(found[0]))
    ]
    storage.write_json(
        FLAGS.results, {"source": FLAGS.source, "seeds": seeds, "rows": rows}
    )
    print(report.text_table(rows, percent=False))


def _measured(seed: int) -> list[dict[str, Any]]:
    """A row for each network and behaviour."""
    model, training = presets.PRESETS["stdlib"]
    data = DataConfig(
        "stdlib",
        **{**presets.TEXT_DATA, "canaries": 0, "repeated": 0},
        removable=(FLAGS.source,),
        noise_seed=seed,
    )
    examples = load(data)
    never = examples.take(
        (examples.group != FLAGS.source) | ~examples.is_trained_on
    )
    tied = ModelConfig(**model, seed=seed)
    plain = dataclasses.replace(tied, dropout="none", expand=0.0)
    routed = TrainConfig(**training, seed=seed)
    ordinary = dataclasses.replace(
        routed, rule="cross_entropy", memory_off=TrainConfig().memory_off
    )
    rows = []
    for name, seen, network, config in (
        ("standard", examples, plain, ordinary),
        ("standard, never saw it", never, plain, ordinary),
        ("tied", examples, tied, routed),
    ):
        run = train(
            pathlib.Path(FLAGS.runs_dir)
            / f"{name.replace(', ', '_').replace(' ', '_')}_{seed}",
            data=data,
            examples=seen,
            model=network,
            training=config,
        )
        for how, each in inference_models(run.model()).items():
            if how != "expected":
                losses_ = _losses(each, examples)
                rows.append({"network": name, "inference": how, **losses_})
    return rows


def _losses(network: keras.Model, examples: Examples) -> dict[str, float]:
    """Mean loss, in nats a token, of three kinds of windows."""
    is_source = examples.group == FLAGS.source
    is_clean, is_test = (
        examples.subset == subset for subset in ("clean", "test")
    )
    found = {}
    for words, chosen in (
        ("source_loss", is_clean & is_source),
        ("others_loss", is_clean & ~is_source),
        ("new_loss", is_test & ~is_source),
    ):
        part = examples.take(chosen)
        logits = predict_logits(network, part, batch_size=64)
        each = losses.measured_losses(part.label, logits)
        found[words] = float(each.mean())
    return found


def _together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over seeds, with intervals where there are several."""
    found: dict[str, Any] = {}
    for name, value in rows[0].items():
        if isinstance(value, str):
            found[name] = value
            continue
        values = np.array([row[name] for row in rows])
        found[name] = float(values.mean())
        if len(values) > 1:
            low, high = t_interval(values)
            found[f"{name}_low"], found[f"{name}_high"] = low, high
    return found


if __name__ == "__main__":
    flags.flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.flags.DEFINE_string("source", "asyncio", "What is to be forgotten.")
    flags.flags.DEFINE_string("runs_dir", "runs/sources", "Where runs lie.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
