"""Writes the photographs with wrong labels of which the README tells.

  python -m benchmarks.photographs --out=mine.npz --download

makes 3,000 training and 500 test pictures of 20 x 28 pixels out of CIFAR-10,
with 288 wrong labels. `true_label` is in the file, so that
`binaries.score_examples` can say how well it ranks; nothing else reads it.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import DataConfig, load, storage

_ROWS, _COLUMNS = slice(6, 26), slice(2, 30)


def main() -> None:
    """Writes the file of --out."""
    path = flags.FLAGS.out
    if pathlib.Path(path).exists():
        raise FileExistsError(f"{path} is there already. Expected a new file.")
    examples = load(
        DataConfig(
            "cifar10",
            train_examples=3000,
            test_examples=500,
            noise_rate=0.0,
            data_dir=os.environ.get("TFDS_DATA_DIR"),
        ),
        download=flags.FLAGS.download,
    )
    train, test = examples.train, examples.test
    label = train.label.copy()
    rng = np.random.default_rng(0)
    wrong = rng.random(len(label)) < 0.09
    label[wrong] = (label[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    pictures = [
        np.asarray(part.inputs["image"])[:, _ROWS, _COLUMNS]
        for part in (train, test)
    ]
    storage.write_arrays(
        path,
        {
            "x_train": pictures[0],
            "y_train": label,
            "x_test": pictures[1],
            "y_test": test.label,
            "true_label": train.label,
        },
    )
    print(f"{path}: {int(wrong.sum())} of {len(label)} labels are wrong")


if __name__ == "__main__":
    flags.flags.DEFINE_string("out", "mine.npz", "The file that is written.")
    flags.define_download()
    flags.run(main)
