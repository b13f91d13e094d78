"""Which ranking finds a memory in known units, over networks and seeds.

  python -m benchmarks.injection --runs_dir=runs/injection

trains what is not there yet, plants items into each network, and writes a row
for each network, ranking and share into docs/results/injection.json; the items
of all seeds of a network are taken together. The digits take about four minutes
for a seed on 2 CPU cores, most of it for zero_out. own_projection and
own_curvature were chosen on seed 10 of the digits, which is not in the table.
`--figure` draws docs/injection.png from these rows and those of
`benchmarks.removal`.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from scipy import stats

from benchmarks import audit_tables, removal
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    DataConfig,
    Deletion,
    DeletionConfig,
    Injection,
    InjectionConfig,
    ModelConfig,
    TrainConfig,
    delete_units,
    find_planted,
    load,
    presets,
    report,
    storage,
    train,
)

RESULTS = pathlib.Path("docs") / "results" / "injection.json"
FIGURE = pathlib.Path("docs") / "injection.png"
FLAGS = flags.FLAGS
_TEXT = presets.PRESETS["stdlib"][1]
# Networks that `benchmarks.removal` has as well -> their names there.
_SHARED = {
    "resnet9 digits": "digits",
    "vit digits": "vit",
    "resnet9 cifar10": "cifar",
}
SETTINGS = {
    **{name: removal.SETTINGS[key] for name, key in _SHARED.items()},
    "transformer stdlib": removal.Setting(
        DataConfig("stdlib", **presets.TEXT_DATA),
        ModelConfig("transformer", dropout="none"),
        TrainConfig(**{**_TEXT, "rule": "cross_entropy"}),
        seeds=(0,),
    ),
}


def main() -> None:
    """Trains, plants, asks, writes."""
    if FLAGS.figure:
        audit_tables.draw_injection(
            storage.read_json(FLAGS.results),
            storage.read_json(removal.RESULTS)["rows"],
            _SHARED,
            FIGURE,
        )
        return
    names = FLAGS.only or list(SETTINGS)
    kept = {"rows": [], "deletion": [], "agreement": []}
    if pathlib.Path(FLAGS.results).exists():
        kept = storage.read_json(FLAGS.results)
    for name in names:
        if name not in SETTINGS:
            raise ValueError(
                f"--only must name some of {', '.join(SETTINGS)}. Received: "
                f"{name}."
            )
        found, deleted = zip(
            *(_measured(name, seed) for seed in _seeds(name)), strict=True
        )
        result = together(found, name)
        kept["rows"] = _others(kept["rows"], name) + result.rows()
        if deleted[0] is not None:
            kept["deletion"] = _others(kept["deletion"], name) + [
                {"model": name, "seed": seed, **row}
                for seed, each in zip(_seeds(name), deleted, strict=True)
                for row in each.rows()
            ]
            kept["agreement"] = _others(kept["agreement"], name) + [
                {"model": name, **_agreement(result, deleted)}
            ]
        storage.write_json(FLAGS.results, kept)
        print(name, result.sentence())
        print(report.text_table(result.table()))


def _others(rows: list[dict], name: str) -> list[dict]:
    """The rows of all other networks."""
    return [row for row in rows if row["model"] != name]


def _agreement(result: Injection, deleted) -> dict[str, float]:
    """Do rankings that find planted units also delete well?"""
    selective = np.mean([each.selectivity for each in deleted], axis=0)
    recall = result.recall.mean(axis=(1, 2))
    correlation = stats.spearmanr(recall, selective).statistic
    return {"rankings": len(recall), "spearman": float(correlation)}


def _seeds(name: str) -> list[int]:
    return [int(seed) for seed in FLAGS.seeds] or list(SETTINGS[name].seeds)


def _measured(name: str, seed: int) -> tuple[Injection, Deletion | None]:
    """The items of one network, and what its own memories hang on."""
    setting = SETTINGS[name].of_seed(seed)
    examples = load(setting.data)
    folder = name.replace(" ", "_")
    run = train(
        pathlib.Path(FLAGS.runs_dir) / f"{folder}_{seed}",
        data=setting.data,
        model=setting.model,
        training=setting.training,
        examples=examples,
    )
    config = InjectionConfig(items=FLAGS.items, seed=seed)
    found = find_planted(run, examples, config, progress=True)
    if examples.task != "classes":
        return found, None
    deletion = DeletionConfig(seed=seed, count=32)
    return found, delete_units(run, examples, deletion, progress=True)


def together(found: list[Injection], name: str) -> Injection:
    """The items of several networks of one kind as one result."""
    joined = {
        field: np.concatenate([getattr(each, field) for each in found], axis=-1)
        for field in ("recall", "overall", "possible", "seconds", "steps")
    }
    return dataclasses.replace(
        found[0],
        model=name,
        not_learned=sum(each.not_learned for each in found),
        **joined,
    )


if __name__ == "__main__":
    flags.flags.DEFINE_list("only", [], f"Some of {', '.join(SETTINGS)}.")
    flags.flags.DEFINE_list("seeds", [], "Default: those of the setting.")
    flags.flags.DEFINE_integer("items", 32, "Items for each network.")
    flags.flags.DEFINE_string("runs_dir", "runs/injection", "Where runs lie.")
    flags.flags.DEFINE_bool("figure", False, f"Only draw {FIGURE}.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
