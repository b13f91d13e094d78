"""Prints checksums of the order, the augmentation and the masks."""

import sys

import numpy as np
import tensorflow as tf

from tfmemloc import data, storage
from tfmemloc.configs import DataConfig
from tfmemloc.layers import masks


def main() -> None:
    """One line, the same on any number of threads, eager or in a graph."""
    if "--eager" in sys.argv:
        tf.config.run_functions_eagerly(True)
    examples = data.load(DataConfig(train_examples=300))
    found = []
    for inputs, label in data.make_batches(
        examples.train, 64, seed=3, augment="standard", stop_step=12
    ):
        mask = tf.function(masks.example_mask)(7, inputs["example_id"], 33, 0.2)
        found += [
            inputs["image"].numpy(),
            inputs["example_id"].numpy(),
            label.numpy(),
            mask.numpy(),
        ]
        np.testing.assert_array_equal(
            mask, masks.example_mask_numpy(7, inputs["example_id"], 33, 0.2)
        )
    print(storage.digest(found))


if __name__ == "__main__":
    main()
