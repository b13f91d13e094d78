"""Who pays for forgetting? Accuracy of the majority and of a small group.

  python -m benchmarks.worst_group --run_dir=runs/groups

trains networks, takes memory out of them and measures the groups of the test
examples; two minutes a seed of the digits, ten of CIFAR-10, on 2 CPU cores.
Killed, the same command goes on. Writes docs/results/worst_group.json.

    coloured    the digits in red and blue: 0 to 4 are red and 5 to 9 blue, but
                for one training picture in twenty, and half of the test ones.
                Group `other`: those of the other colour
    imbalanced  CIFAR-10, 5,000 images, with a tenth of the images of five
                classes: group `other`

No label is wrong. The networks have the same served width:

    standard        no dropout
    sparse          the control: the same share of units off as in the tied
                    network, for all examples alike
    example_tied    with its memory (`tied`) and without (`drop`)
    standard_edited one curvature edit, with refits, chosen on examples held out
    standard_edited_protected
                    the same, told that the small group's labels are right
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import removal
from benchmarks.harness import chosen, kept_rows
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    Examples,
    GroupConfig,
    TrainConfig,
    audit_groups,
    load,
    remove_memory,
    report,
    storage,
    train,
)
from tfmemloc.data.labels import hold_out
from tfmemloc.layers import masks

RESULTS = pathlib.Path("docs") / "results" / "worst_group.json"
FLAGS = flags.FLAGS
USUAL, OTHER = "usual", "other"
_RARE_COLOUR, _RARE_CLASSES = 0.05, 0.1


def main() -> None:
    """Trains, forgets, measures what is not there yet."""
    for name in chosen(FLAGS.only, CASES):
        for seed in map(int, FLAGS.seeds):
            key = {"data": name, "seed": seed}
            if not any(key.items() <= row.items() for row in _rows()):
                found = _measured(name, seed)
                rows = [*_rows(), *({**key, **row} for row in found)]
                storage.write_json(FLAGS.results, {"rows": rows})
                print(report.text_table(found))


def _rows() -> list[dict[str, Any]]:
    return kept_rows(FLAGS.results)


def _measured(name: str, seed: int) -> list[dict[str, Any]]:
    make, setting = CASES[name]
    setting = setting.of_seed(seed)
    examples = hold_out(make(seed), 0.1, seed=seed)
    tied = setting.tied.of(setting.model, setting.training)
    sparse = dataclasses.replace(tied[0], dropout="sparse")
    folder = pathlib.Path(FLAGS.run_dir) / f"{name}_{seed}"
    networks = {
        kind: train(
            folder / kind,
            examples=examples,
            model=model,
            training=_measured_once(training),
            progress=False,
        )
        for kind, (model, training) in {
            "standard": (setting.model, setting.training),
            "sparse": (sparse, setting.training),
            "example_tied": tied,
        }.items()
    }
    edited = {
        kind: remove_memory(
            networks["standard"], examples, config, directory=folder / "edit"
        )[0]
        for kind, config in EDITS.items()
    }
    found = audit_groups({**networks, **edited}, examples, GroupConfig("test"))
    return found.rows()


def _measured_once(training: TrainConfig) -> TrainConfig:
    return dataclasses.replace(
        training, evaluate_every=training.epochs, save_every=training.epochs
    )


def coloured(seed: int) -> Examples:
    """The digits in red and blue; the colour tells the class, mostly."""
    digits = load(DataConfig("digits", noise_rate=0.0))
    rate = np.where(digits.is_trained_on, _RARE_COLOUR, 0.5)
    is_other = _drawn(seed, "colour", digits) < rate
    is_red = (digits.label < 5) != is_other
    grey = np.asarray(digits.inputs["image"])
    zero = np.zeros_like(grey)
    red, blue = (
        np.concatenate(parts, axis=-1)
        for parts in ((grey, zero, zero), (zero, zero, grey))
    )
    pictures = np.where(is_red[:, None, None, None], red, blue)
    return dataclasses.replace(
        digits,
        inputs={"image": pictures},
        group=np.where(is_other, OTHER, USUAL),
    )


def imbalanced(seed: int) -> Examples:
    """CIFAR-10 with a tenth of the training images of five classes."""
    everything = load(
        DataConfig(
            "cifar10",
            data_dir=os.environ.get("TFDS_DATA_DIR"),
            train_examples=9000,
            test_examples=10_000,
            noise_rate=0.0,
        )
    )
    is_rare = everything.label >= 5
    grouped = dataclasses.replace(
        everything, group=np.where(is_rare, OTHER, USUAL)
    )
    is_kept = _drawn(seed, "class", grouped) < _RARE_CLASSES
    return grouped.take(~grouped.is_trained_on | ~is_rare | is_kept)


def _drawn(seed: int, salt: str, examples: Examples) -> np.ndarray:
    """A number in [0, 1) of each example, by (seed, id): [N]."""
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, salt), examples.example_id, 1
    )
    return bits[:, 0] / 2.0**32


EDITS = {
    "standard_edited": CurvatureConfig(believe="network"),
    "standard_edited_protected": CurvatureConfig(
        protect=(OTHER,), believe="network"
    ),
}
CASES: dict[str, tuple[Callable[[int], Examples], removal.Setting]] = {
    "coloured": (coloured, removal.SETTINGS["digits"]),
    "imbalanced": (imbalanced, removal.SETTINGS["cifar"]),
}


if __name__ == "__main__":
    flags.flags.DEFINE_list("only", [], f"Some of {', '.join(CASES)}.")
    flags.flags.DEFINE_list("seeds", ["0", "1", "2"], "Of all that is drawn.")
    flags.flags.DEFINE_string("run_dir", "runs/groups", "Where runs lie.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
