"""Rare examples that are right: what an edit costs them, and protecting them.

  python -m benchmarks.protect --json=docs/results/protect.json

Of the digits' 1,437 training pictures 30, or 8, are inverted, black on white;
they are labelled right, and a tenth of the others wrong. A network that
learned them knows the rare kind a little. Memory is taken out of it twice: as
it is, and with the group of the inverted ones named (`protect`). `rare_test`
is the accuracy on the 360 test pictures, inverted.
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
    from_arrays,
    predict_logits,
    presets,
    remove_memory,
    report,
    storage,
    train,
)

FLAGS = flags.FLAGS
RARE = "inverted"
_TRAINED = 1437


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
    examples, common, rare = _examples(seed, count)
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
        for name, protect in (("edited", ()), ("protected", (RARE,))):
            config = CurvatureConfig(seed=seed, protect=protect)
            networks[name], _ = remove_memory(run, examples, config)
    return [
        {
            "rare": count,
            "seed": seed,
            "network": name,
            "noisy": _accuracy(model, examples.of_subset("noisy")),
            "test": _accuracy(model, common),
            "rare_train": _accuracy(
                model, examples.take(examples.group == RARE)
            ),
            "rare_test": _accuracy(model, rare),
        }
        for name, model in networks.items()
    ]


def _examples(seed: int, count: int) -> tuple[Examples, Examples, Examples]:
    """All examples with the common test pictures; those; the rare ones."""
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
    return examples, examples.of_subset("test"), inverted


def _accuracy(model: keras.Model, examples: Examples) -> float:
    predicted = predict_logits(model, examples).argmax(axis=1)
    return float((predicted == examples.label).mean())


if __name__ == "__main__":
    flags.flags.DEFINE_list("seeds", ["0", "1", "2"], "Of all that is drawn.")
    flags.flags.DEFINE_list("rare", ["30", "8"], "Inverted training pictures.")
    flags.flags.DEFINE_string("json", None, "Also write the rows to this file.")
    flags.run(main)
