"""Labels that are really wrong: test pictures of MNIST and CIFAR-10.

Five people each looked at those test pictures whose label confident learning
doubted. Here are the ones of which fewer than three chose the label that the
data set gives, 15 of MNIST and 54 of CIFAR-10, with the other label that they
were shown. What nobody doubted counts as right, though some of it may be wrong.

Source: Northcutt, Athalye and Mueller, "Pervasive Label Errors in Test Sets
Destabilize Machine Learning Benchmarks", 2021, and its study's files,
https://github.com/cleanlab/label-errors.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from tfmemloc import from_arrays
from tfmemloc.data import Examples

# Place in the original test set -> the other label.
CONFIRMED: dict[str, dict[int, int]] = {
    "mnist": {
        **{947: 9, 1621: 6, 1901: 4, 2130: 9, 2462: 0, 2597: 3, 2654: 1},
        **{3520: 4, 3558: 0, 5937: 3, 6651: 6, 6783: 6, 8527: 9, 9679: 3},
        **{9729: 6},
    },
    "cifar10": {
        **{165: 2, 792: 5, 882: 2, 1227: 5, 1300: 3, 1684: 8, 1718: 8},
        **{1969: 9, 2010: 2, 2128: 6, 2232: 3, 2405: 6, 2532: 1, 2592: 4},
        **{2804: 5, 2840: 4, 2940: 0, 3113: 6, 3168: 8, 3183: 5, 3192: 4},
        **{3490: 8, 3600: 3, 3753: 3, 3977: 6, 4055: 0, 4198: 0, 4614: 5},
        **{4643: 2, 4794: 2, 4910: 9, 4965: 4, 5166: 7, 5191: 5, 5211: 4},
        **{5468: 3, 5632: 5, 5690: 4, 5882: 9, 5960: 3, 6522: 1, 6792: 9},
        **{6877: 8, 6966: 8, 7311: 9, 7657: 7, 7846: 3, 8058: 7, 8296: 3},
        **{8620: 2, 9227: 9, 9352: 9, 9643: 0, 9793: 5},
    },
}


def load(dataset: str, others: int) -> Examples:
    """The 10,000 test pictures as training examples, with their real errors.

    Args:
        dataset: `mnist` or `cifar10`, prepared by TFDS.
        others: so many training pictures are the test examples.
    """
    builder = tfds.builder(dataset, data_dir=os.environ.get("TFDS_DATA_DIR"))

    def read(split: str):
        rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
        pictures = np.stack([row["image"] for row in rows])
        return rows, pictures, np.array([row["label"] for row in rows])

    rows, pictures, label = read("test")
    place = _original_places(rows)
    true = [
        CONFIRMED[dataset].get(p, y)
        for p, y in zip(place, label.tolist(), strict=True)
    ]
    _, x_test, y_test = read(f"train[:{others}]")
    return from_arrays(
        pictures,
        label,
        x_test,
        y_test,
        true_label=np.array(true),
        name=f"{dataset}, real errors",
    )


def _original_places(rows) -> list[int]:
    """Where each row stands in the original test set.

    TFDS writes rows in the order of the hashes of their keys; CIFAR-10's have
    the key as a column, MNIST's is the place itself.
    """
    if "id" in rows[0]:
        return [int(row["id"].decode().rpartition("_")[2]) for row in rows]
    hasher = hashing.Hasher("test")
    return sorted(range(len(rows)), key=hasher.hash_key)
