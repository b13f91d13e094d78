"""Rivals of the ranking of labels, each at its best settings.

All take what `benchmarks.label_errors` gives them: training examples with the
labels as they are, and the folds. Settings were chosen on seed 10 of the
digits, which is in no table, by the mean over the three kinds of noise.

- `cleanlab_neighbours`, `cleanlab_svm`, `cleanlab_mean`: confident learning on
  five-fold predictions of ten nearest neighbours, of support vectors, and of
  the mean of both and a logistic regression, all on pixels; with `_adjusted`,
  predictions are divided by each class's mean first. Quality of a label is its
  normalized margin, which was better than its probability almost everywhere.
- `cleanlab_last`, `cleanlab_early`, `cleanlab_averaged`: the same on the
  networks of the folds at the end of their training, at the epoch of the best
  accuracy on the given labels of the other folds, and on the mean of the
  predictions of the second half of their epochs.
- `dropped_sei`, `dropped_csl`, `dropped_wrong_event`, `dropped_csg`,
  `tied_sei`, `tied_csg`: the course of the training of the tied network,
  without its memory and with it; CSG is the sum over epochs of the squared
  gradient of the loss at the input (ICLR 2026).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from cleanlab.rank import get_label_quality_scores
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from tfmemloc import evaluation, graph, losses, tracing
from tfmemloc.data import Examples
from tfmemloc.data.chunks import chunks
from tfmemloc.graph.inputs import arranged
from tfmemloc.layers import masks
from tfmemloc.runs import Run
from tfmemloc.scores.of_training import (
    dynamics,
    errors_of,
    margins,
    signed_entropy,
)

FOLDS = 5
_TINY = 1e-6

Found = dict[str, tuple[np.ndarray, float]]


def folds(example_id: np.ndarray) -> np.ndarray:
    """[N] the fold of each example, by its id."""
    return masks.hash_bits_numpy(7, example_id, 1)[:, 0] % FOLDS


def _quality(label, chance, adjusted: bool = False) -> np.ndarray:
    return 1 - get_label_quality_scores(
        label,
        np.clip(chance, _TINY, 1),
        method="normalized_margin",
        adjust_pred_probs=adjusted,
    )


def classical(part: Examples, fold: np.ndarray) -> Found:
    """Scores by ordinary classifiers, and the seconds that each takes."""
    pixels = np.asarray(part.inputs["image"]).reshape(len(part), -1) / 255.0
    made = {
        "neighbours": KNeighborsClassifier(10, weights="distance"),
        # Its own coupling of pairs of classes ranks better than calibration.
        "svm": SVC(probability=True, random_state=0),
        "linear": make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=1000, C=0.01)
        ),
    }
    chances, seconds = {}, {}
    for name, classifier in made.items():
        started = time.perf_counter()
        chances[name] = np.zeros((len(part), part.classes))
        for k in range(FOLDS):
            with warnings.catch_warnings():  # Of `probability`.
                warnings.simplefilter("ignore", FutureWarning)
                classifier.fit(pixels[fold != k], part.label[fold != k])
            chances[name][
                np.ix_(fold == k, classifier.classes_.astype(int))
            ] = classifier.predict_proba(pixels[fold == k])
        seconds[name] = time.perf_counter() - started
    chances["mean"] = sum(chances.values()) / len(made)
    seconds["mean"] = sum(seconds.values())
    return {
        f"cleanlab_{name}{suffix}": (
            _quality(part.label, chances[name], bool(suffix)),
            seconds[name],
        )
        for name in ("neighbours", "svm", "mean")
        for suffix in ("", "_adjusted")
    }


def networks(
    runs: Sequence[Run], part: Examples, fold: np.ndarray
) -> dict[str, np.ndarray]:
    """Scores by the networks of the folds, stopped early and averaged."""
    epochs = runs[0].epochs[1:]
    chance = np.zeros((len(epochs), len(part), part.classes))
    for k, run in enumerate(runs):
        model, others = run.model(), part.take(fold == k)
        predictor = evaluation.Predictor(model)
        for place, epoch in enumerate(epochs):
            run.load_weights(model, epoch)
            logits = evaluation.predict_logits(predictor, others)
            chance[place, fold == k] = np.exp(losses.log_softmax(logits))
    right = (chance.argmax(axis=2) == part.label).mean(axis=1)
    late = [place for place, e in enumerate(epochs) if e > epochs[-1] / 2]
    return {
        "cleanlab_last": _quality(part.label, chance[-1]),
        "cleanlab_early": _quality(part.label, chance[right.argmax()]),
        "cleanlab_averaged": _quality(part.label, chance[late].mean(axis=0)),
    }


def course(run: Run, part: Examples) -> dict[str, np.ndarray]:
    """Scores of all epochs of a tied network, with and without its memory."""
    model = run.model()
    own = np.arange(len(part)), part.label
    found = {}
    for how in ("dropped", "tied"):
        network = graph.with_inference(model, how.replace("dropped", "drop"))
        predictor = evaluation.Predictor(network)
        gradient = _InputGradient(network)
        by_epoch, csg = [], np.zeros(len(part))
        for epoch in run.epochs[1:]:
            run.load_weights(model, epoch)
            logits = evaluation.predict_logits(predictor, part)
            by_epoch.append(losses.log_softmax(logits))
            csg += gradient.squared(part)
        rows = np.stack(by_epoch)
        found[f"{how}_sei"] = signed_entropy(rows, part.label)
        found[f"{how}_csg"] = csg
        if how == "dropped":  # The recording has those of the tied network.
            of_course = dynamics(
                np.stack([margins(row, part.label) for row in rows]),
                np.stack([errors_of(row, part.label) for row in rows]),
                np.stack([-row[own] for row in rows]),
            )
            for name in ("csl", "wrong_event"):
                found[f"dropped_{name}"] = of_course[name]
    return found


class _InputGradient:
    """The squared gradient of each example's loss at its picture."""

    def __init__(self, model):
        def squared(inputs, label):
            with tf.GradientTape() as tape:
                tape.watch(inputs["image"])
                outputs = model(arranged(model, inputs), training=False)
                total = tf.reduce_sum(losses.cross_entropy(label, outputs))
            gradient = tape.gradient(total, inputs["image"])
            return tf.reduce_sum(gradient**2, axis=[1, 2, 3])

        self._function = tracing.function(squared, reduce_retracing=True)

    def squared(self, part: Examples) -> np.ndarray:
        """[N]."""
        return np.concatenate(
            [
                self._function(
                    tf.nest.map_structure(tf.convert_to_tensor, chunk.inputs),
                    tf.constant(chunk.label),
                ).numpy()
                for chunk in chunks(part, 512, even=True)
            ]
        )
