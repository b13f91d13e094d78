"""Is the suspicion true? From no wrong labels to two in five.

  python -m benchmarks.label_rates

adds wrong labels to each data set at several rates, asks
`score_without_network` how many there are and which, and writes
docs/results/label_rates.json; a row that is there is not made again. About ten
minutes on 2 CPU cores. `--figure` draws docs/labels_reliability.png from the
rows, and docs/labels_precision.png from those of `benchmarks.label_errors` on
CIFAR-10.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np

from benchmarks import label_tables
from benchmarks.harness import chosen, kept_rows
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import DataConfig, load, score_without_network, scores, storage

FLAGS = flags.FLAGS
DOCS = pathlib.Path("docs")
RESULTS = DOCS / "results" / "label_rates.json"
DATA = {
    "digits": DataConfig("digits"),
    "MNIST, 5,000": DataConfig("mnist", train_examples=5000, test_examples=100),
    "CIFAR-10, 5,000": DataConfig(
        "cifar10", train_examples=5000, test_examples=100
    ),
}
_RATES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4)
_SEEDS = (0, 1, 2)
_BINS = 10


def main() -> None:
    """Measures what is not there, or draws."""
    if FLAGS.figure:
        _draw()
        return
    for name in chosen(FLAGS.only, DATA):
        for rate in _RATES:
            for seed in _SEEDS:
                rows = kept_rows(RESULTS)
                key = {"data": name, "rate": rate, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                row = key | _measured(name, rate, seed)
                storage.write_json(RESULTS, {"rows": [*rows, row]})
    print(label_tables.rates(kept_rows(RESULTS)))


def _measured(name: str, rate: float, seed: int) -> dict:
    config = dataclasses.replace(
        DATA[name],
        noise_rate=rate,
        noise_seed=seed,
        data_dir=os.environ.get("TFDS_DATA_DIR"),
    )
    found = score_without_network(load(config))
    wrong = found.label != found.true_label
    likely = found.suspicion >= 0.5
    bins = np.minimum((found.suspicion * _BINS).astype(int), _BINS - 1)
    sums = [
        np.bincount(bins, weights, minlength=_BINS)
        for weights in (np.ones(len(wrong)), found.suspicion, wrong)
    ]
    mean = float(found.suspicion.mean())
    # Where no label is wrong, every suspicion is an error.
    error, row = mean, {}
    if wrong.any():
        error = scores.calibration_error(found)
        row = {"average_precision": found.quality[0]["average_precision"]}
    return row | {
        "found": mean,
        "noise_found": found.noise,
        "calibration_error": error,
        "over_half": int(likely.sum()),
        "over_half_wrong": int((likely & wrong).sum()),
        "bins": np.stack(sums, axis=1).tolist(),
    }


def _draw() -> None:
    label_tables.draw_reliability(
        kept_rows(RESULTS), DOCS / "labels_reliability.png"
    )
    found = kept_rows(DOCS / "results" / "cifar10_label_errors.json")
    label_tables.draw_precision(
        [row for row in found if row["noise"] == "uniform"],
        DOCS / "labels_precision.png",
    )


if __name__ == "__main__":
    flags.flags.DEFINE_list("only", [], f"Some of {'; '.join(DATA)}.")
    flags.flags.DEFINE_bool("figure", False, "Only draw, from the rows.")
    flags.run(main)
