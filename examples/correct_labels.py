"""Wrong labels in the data of a network that is already trained, corrected.

  python examples/correct_labels.py

An ordinary Keras network was trained on digits of which a tenth has a wrong
label. A copy of it without its memory ranks the labels; a person decides about
the most suspicious ones on a page (here the true labels answer in their
place); the network is trained anew on what was corrected. Takes half a minute
on 2 CPU cores.
"""

import csv
import pathlib
import sys

import keras
import numpy as np
from sklearn.datasets import load_digits

import tfmemloc


def network():
    """Two hidden layers; nothing of tfmemloc in it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def decide(review, path, true_label):
    """Stands for a person who looks at 200 examples and knows digits."""
    with open(review, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:200]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["example_id", "label", "decision", "new_label"])
        for row in rows:
            label = int(row["label"])
            right = int(true_label[int(row["example_id"])])
            decision = "keep" if right == label else "other"
            table.writerow([row["example_id"], label, decision, right])


def main(folder):
    """Trains, finds, decides, corrects, trains anew."""
    x, true_label = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    label = true_label.copy()
    label[::10] = (label[::10] + np.arange(len(label[::10])) % 9 + 1) % 10
    train, test = slice(0, 1400), slice(1400, None)

    model = network()
    model.fit(x[train], label[train], epochs=40, batch_size=64, verbose=0)
    before = model.evaluate(x[test], true_label[test], verbose=0)[1]

    # From here on: the library.
    examples = tfmemloc.from_arrays(x[train], label[train])
    scores = tfmemloc.find_label_errors(model, examples, folder)
    print(f"decide on {folder / 'review.html'}")
    decisions = folder / "decisions.csv"  # The page saves it.
    decide(folder / "suspects.csv", decisions, true_label)
    corrected = tfmemloc.apply_decisions(examples, decisions)

    again = network()
    again.fit(x[train], corrected.label, epochs=40, batch_size=64, verbose=0)
    after = again.evaluate(x[test], true_label[test], verbose=0)[1]
    wrong, left = (
        int((each != true_label[train]).sum())
        for each in (label[train], corrected.label)
    )
    print(f"suspects: {len(scores.suspects())}")
    print(f"wrong labels: {wrong} before, {left} after the decisions")
    print(f"test accuracy: {before:.1%} before, {after:.1%} after")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "labels"))
