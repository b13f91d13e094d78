"""Rare examples that are right: what an edit costs them, and protecting them.

  python -m benchmarks.protect --json=docs/results/protect.json

Of the digits' 1,437 training pictures 30, or 8, are inverted, black on white;
they are labelled right, and a tenth of the others wrong. A network that
learned them knows the rare kind a little. Memory is taken out of it as it is,
and with the group of the inverted ones named (`protect`), refitted on what the
edited network believes or on what all do. `rare_test` is the accuracy on the
360 test pictures, inverted.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import keras
import numpy as np
from sklearn.datasets import load_digits

from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    Examples,
    ModelConfig,
    TrainConfig,
    evaluate,
    from_arrays,
    presets,
    remove_memory,
    report,
    storage,
    train,
)

FLAGS = flags.FLAGS
RARE = "inverted"
_TRAINED = 1437
_WAYS: dict[str, dict[str, Any]] = {
    "edited": {"believe": "network"},
    "believed by all": {"believe": "all"},
    "protected": {"protect": (RARE,), "believe": "network"},
    "protected, believed by all": {"protect": (RARE,), "believe": "all"},
}


def main() -> None:
    """Trains, removes, measures, prints."""
    rows = [
        row
        for count in FLAGS.rare
        for seed in FLAGS.seeds
        for row in _of_seed(int(seed), int(count))
    ]
    print(report.text_table(rows))
    if FLAGS.json:
        storage.write_json(FLAGS.json, {"rows": rows})


def _of_seed(seed: int, count: int) -> list[dict[str, Any]]:
    examples, rare = _examples(seed, count)
    _, preset = presets.PRESETS["digits"]
    with tempfile.TemporaryDirectory() as directory:
        run = train(
            pathlib.Path(directory) / "run",
            model=ModelConfig(width=0.5, dropout="none", seed=seed),
            training=TrainConfig(**preset, seed=seed, evaluate_every=60),
            examples=examples,
            progress=False,
        )
        networks = {"before": run.model()}
        for name, changed in _WAYS.items():
            config = CurvatureConfig(seed=seed, **changed)
            networks[name], _ = remove_memory(run, examples, config)
    return [
        {"rare": count, "seed": seed, "network": name}
        | _measures(model, examples, rare)
        for name, model in networks.items()
    ]


def _measures(model: keras.Model, examples: Examples, rare: Examples):
    """Accuracy by subset, and of the rare kind."""
    by_subset, by_group, new = (
        evaluate(model, examples),
        evaluate(model, examples, by="group"),
        evaluate(model, rare),
    )
    return {
        "noisy": by_subset.of("noisy")["accuracy"],
        "test": by_subset.of("test")["accuracy"],
        "rare_train": by_group.of(RARE)["accuracy"],
        "rare_test": new.of("clean")["accuracy"],
    }


def _examples(seed: int, count: int) -> tuple[Examples, Examples]:
    """The examples, and the test pictures inverted."""
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) / 16 * 255).round().astype(np.uint8)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    x, y = x[order], y[order]
    held_out = np.arange(_TRAINED) % 10 == 0
    rare = rng.choice(np.flatnonzero(~held_out), count, replace=False)
    group = np.full(len(x), "ordinary")
    group[rare] = RARE
    wrong = rng.choice(
        np.flatnonzero(group[:_TRAINED] != RARE), _TRAINED // 10, replace=False
    )
    given = y[:_TRAINED].copy()
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    subset = np.full(_TRAINED, "clean", "<U7")
    subset[wrong] = "noisy"
    subset[held_out] = "heldout"
    pictures = x[:_TRAINED].copy()
    pictures[rare] = 255 - pictures[rare]
    examples = from_arrays(
        pictures,
        given,
        x[_TRAINED:],
        y[_TRAINED:],
        subset=subset,
        group=group,
        true_label=y[:_TRAINED],
        name="digits, a few inverted",
    )
    inverted = from_arrays(255 - x[_TRAINED:], y[_TRAINED:], classes=10)
    return examples, inverted


if __name__ == "__main__":
    flags.flags.DEFINE_list("seeds", ["0", "1", "2"], "Of all that is drawn.")
    flags.flags.DEFINE_list("rare", ["30", "8"], "Inverted training pictures.")
    flags.flags.DEFINE_string("json", None, "Also write the rows to this file.")
    flags.run(main)
