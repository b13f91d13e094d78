"""What all other examples say about a label, without any network.

Each example's label is predicted from the labels of the others by kernel ridge
regression, which has what leaving one example out gives in closed form: with
the kernel K, the labels Y (one-hot, less each class's share) and

    H  =  K (K + 1)^-1,     f  =  H Y,

the prediction of example i by all but i is

    f_-i  =  (f_i - H_ii y_i) / (1 - H_ii).

So it never saw the label that it judges, which no trained network can say. The
kernel is exp(-d^2 / median d^2) of the inputs as `tfmemloc.scores.descriptions`
describes them. Of more than 2,048 examples, so many are landmarks L (by their
ids), of whose kernels all predictions are made:

    H  =  K_NL (K_LN K_NL + K_LL)^-1 K_LN.

References: Wahba, Spline Models for Observational Data, 1990, section 4.2 (the
formula); Coates and Ng, Learning Feature Representations with K-means, 2012
(pictures); Rudi et al., Less is More: Nystroem Computational Regularization,
2015 (landmarks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import linalg

from tfmemloc.data.chunks import chunks
from tfmemloc.data.examples import Examples
from tfmemloc.layers import masks
from tfmemloc.scores.descriptions import Description

_LANDMARKS = 2048
# From a share of 1 for the label, none for others, to logits that are sure.
_SCALE = 10.0
# Of so many landmarks the distances are compared.
_COMPARED = 1000
_CHUNK = 256
# Kernels up to this size are kept; larger ones are computed twice.
_KEPT_NUMBERS = 2**27
_JITTER = 1e-8

Rows = Callable[[Examples], Iterator[np.ndarray]]


class LeftOut(NamedTuple):
    """Predictions that did not see the labels that they are compared with.

    Attributes:
        train: [N, classes] logits of each training example by all others.
        others: [M, classes] of other examples by all training examples.
    """

    train: np.ndarray
    others: np.ndarray


def predict_left_out(
    train: Examples,
    others: Examples,
    *,
    seed: int = 0,
    progress: bool = False,
) -> LeftOut:
    """Predicts each label from the others, and those of further examples.

    Args:
        train: N examples with labels [N].
        others: M of the same kind, or none.
        seed: of landmarks and patches.
        progress: show a progress bar.

    Returns:
        Logits whose temperature is still to be fitted.

    Example:
        >>> found = predict_left_out(examples.train, examples.test)
        >>> bool((found.train.argmax(1) == examples.train.label).mean() > 0.7)
        True
    """
    landmarks = train.take(_landmarks(train.example_id, seed))
    kernel = _Kernel(landmarks, seed, progress)
    share = np.bincount(train.label, minlength=train.classes) / len(train)
    wanted = np.eye(train.classes)[train.label] - share
    smoother = _Smoother(kernel, train, wanted)
    predicted, own = smoother.predicted(train)
    left = (predicted - own * wanted) / (1 - own)
    beyond = np.zeros((0, train.classes))
    if len(others):
        beyond, _ = smoother.predicted(others)
    return LeftOut(_SCALE * (left + share), _SCALE * (beyond + share))


def _landmarks(ids: np.ndarray, seed: int) -> np.ndarray:
    """The places of the landmarks, whatever the order of the examples."""
    rank = masks.hash_bits_numpy(seed, ids, 1)[:, 0]
    return np.lexsort((ids, rank))[:_LANDMARKS]


class _Kernel:
    """exp(-d^2 / median d^2) between examples and landmarks.

    Args:
        landmarks: L examples.
        seed: of the patches.
        progress: show a bar for each pass.
    """

    def __init__(self, landmarks: Examples, seed: int, progress: bool):
        self._progress = progress
        self._description = Description(landmarks, seed)
        self._points = self._description.points
        self._norm = (self._points**2).sum(axis=1)
        some = self._distances(self._points[:_COMPARED])[:, :_COMPARED]
        median = np.median(some[~np.eye(len(some), dtype=bool)])
        # Where most examples are the same, any scale will do.
        self._median = median if median > 0 else 1.0

    def among_landmarks(self) -> np.ndarray:
        """[L, L], symmetric."""
        rows = self._of(self._points)
        return (rows + rows.T) / 2

    def rows(self, examples: Examples) -> Iterator[np.ndarray]:
        """Blocks [B, L] for the examples in order."""
        for chunk in chunks(
            examples,
            _CHUNK,
            even=True,
            words="leaving labels out",
            progress=self._progress,
        ):
            yield self._of(self._description(chunk.inputs))

    def _of(self, points: np.ndarray) -> np.ndarray:
        return np.exp(-self._distances(points) / self._median)

    def _distances(self, points: np.ndarray) -> np.ndarray:
        """Squared: [B, L]."""
        norm = (points**2).sum(axis=1)[:, np.newaxis]
        squared = norm + self._norm - 2 * points @ self._points.T
        return np.maximum(squared, 0)


class _Smoother:
    """Ridge regression on kernels with the landmarks.

    Args:
        kernel: of the landmarks.
        train: N examples.
        wanted: [N, classes].
    """

    def __init__(self, kernel: _Kernel, train: Examples, wanted: np.ndarray):
        self._rows = kernel.rows
        self._train = train
        self._kept: list[np.ndarray] | None = None
        # The penalty is that of the kernel among landmarks.
        normal = kernel.among_landmarks()
        count = len(normal)
        if len(train) * count <= _KEPT_NUMBERS:
            self._kept = list(kernel.rows(train))
        target, start = np.zeros((count, wanted.shape[1])), 0
        for rows in self._blocks(train):
            normal += rows.T @ rows
            target += rows.T @ wanted[start : start + len(rows)]
            start += len(rows)
        normal[np.diag_indices(count)] += _JITTER * np.trace(normal) / count
        self._root = linalg.cholesky(
            normal, lower=True, overwrite_a=True, check_finite=False
        )
        self._target = self._solved(target)

    def predicted(self, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """Predictions [B, classes], and how much the own label counts: [B, 1].

        The second is of use for the training examples alone.
        """
        found, own = [], []
        for rows in self._blocks(examples):
            half = self._solved(rows.T)
            found.append(half.T @ self._target)
            own.append((half**2).sum(axis=0))
        return np.concatenate(found), np.concatenate(own)[:, np.newaxis]

    def _blocks(self, examples: Examples) -> Iterator[np.ndarray]:
        if examples is self._train and self._kept is not None:
            return iter(self._kept)
        return self._rows(examples)

    def _solved(self, columns: np.ndarray) -> np.ndarray:
        return linalg.solve_triangular(
            self._root, columns, lower=True, check_finite=False
        )
