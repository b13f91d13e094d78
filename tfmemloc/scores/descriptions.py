"""Inputs described by numbers whose distances mean something.

pictures   how much of each of 256 small patches, drawn from the pictures
           themselves, there is in each quarter (after Coates and Ng, 2012):
           patches lose their mean and contrast and are whitened; a picture is
           compared with them at all places; what exceeds a threshold is added
           up, apart for likeness and for its negative
tokens     which tokens and pairs of neighbours occur, and how often
features   the columns themselves

Each number is then scaled to a variance of one among the examples that the
description is made from; patches and tokens that hardly vary are left small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from scipy import linalg

from tfmemloc import tracing
from tfmemloc.data.chunks import chunks
from tfmemloc.data.examples import Examples, input_kinds
from tfmemloc.data.kinds import FEATURES, PICTURE, TOKENS

_PATCHES, _DRAWN = 256, 20_000
# Larger pictures are scaled down to this side first.
_SIDE = 32
# Of the side of a picture, and at least so many pixels.
_PATCH_SHARE, _SMALLEST_PATCH = 6 / 32, 3
# Pictures of this side or more are compared at every second place.
_SPARSE = 16
# Contrasts below this share of the pictures' own are noise.
_FLAT = 0.15
_WHITENED, _THRESHOLD = 0.1, 1.0
# Patches and tokens that vary less than this share of the others' mean are not
# scaled up. Columns have units of their own: only what does not vary at all.
_STEADY, _CONSTANT = 0.1, 1e-9
_CHUNK = 256  # Examples at once.
_BUCKETS = 2048

Describe = Callable[[np.ndarray], np.ndarray]


class Description:
    """Describes examples like those that it was made from.

    Args:
        examples: L of them.
        seed: of the patches.

    Attributes:
        points: [L, numbers], the description of those.
    """

    def __init__(self, examples: Examples, seed: int):
        rng = np.random.default_rng(seed)
        kinds = input_kinds(examples)
        rows: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
        for chunk in chunks(examples, _CHUNK):
            for name, kind in kinds.items():
                rows[name].append(_small(kind, chunk.inputs[name]))
        self._parts = {
            name: _Scaled(kind, np.concatenate(rows[name]), rng)
            for name, kind in kinds.items()
        }
        self.points = np.concatenate(
            [part.points for part in self._parts.values()], axis=1
        )

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """[B, numbers]: each input counts as much as another."""
        return np.concatenate(
            [part(inputs[name]) for name, part in self._parts.items()], axis=1
        )


class _Scaled:
    """A description whose columns vary alike; divided by their number."""

    def __init__(self, kind: str, rows: np.ndarray, rng: np.random.Generator):
        self._kind = kind
        self._describe = _described(kind, rows, rng)
        parts = range(0, len(rows), _CHUNK)
        found = np.concatenate(
            [self._describe(rows[k : k + _CHUNK]) for k in parts]
        )
        self._mean = found.mean(axis=0)
        self._scale = _spread(kind, found) * np.sqrt(found.shape[1])
        self.points = self._scaled(found)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self._scaled(self._describe(_small(self._kind, rows)))

    def _scaled(self, found: np.ndarray) -> np.ndarray:
        return (found.astype(np.float64) - self._mean) / self._scale


def _spread(kind: str, found: np.ndarray) -> np.ndarray:
    """By what to divide each column; never 0."""
    spread = found.std(axis=0)
    if kind == FEATURES:
        varies = spread > _CONSTANT * np.abs(found).max(axis=0)
        return np.where(varies, spread, 1.0)
    return spread + _STEADY * spread.mean() + 1e-12


def _small(kind: str, rows: np.ndarray) -> np.ndarray:
    """Rows as they are; pictures with at most 32 pixels a side."""
    if kind != PICTURE or max(rows.shape[1:3]) <= _SIDE:
        return rows
    share = _SIDE / max(rows.shape[1:3])
    size = [max(1, round(share * each)) for each in rows.shape[1:3]]
    return tf.image.resize(rows, size, method="area").numpy()


def _described(
    kind: str, rows: np.ndarray, rng: np.random.Generator
) -> Describe:
    if kind == PICTURE:
        return _Patches(rows, rng)
    if kind == TOKENS:
        return (
            _counted
            if rows.ndim > 1 and rows.shape[1] > 1
            else _Categories(rows)
        )
    return lambda rows: np.asarray(rows, np.float64).reshape(len(rows), -1)


class _Patches:
    """How much of each patch there is in each quarter of a picture.

    Args:
        pictures: [L, height, width, channels] that patches are drawn from.
        rng: draws them.
    """

    def __init__(self, pictures: np.ndarray, rng: np.random.Generator):
        self._contrast = float(pictures.std()) or 1.0
        pictures = pictures / np.float32(self._contrast)
        height, width = pictures.shape[1:3]
        side = max(_SMALLEST_PATCH, round(_PATCH_SHARE * max(height, width)))
        self._side = min(side, height, width)
        self._stride = 2 if min(height, width) >= _SPARSE else 1
        self._kernel, self._shift = self._drawn(pictures, rng)
        self._compare = tracing.function(self._compared, reduce_retracing=True)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """[B, 8 * patches]."""
        pictures = tf.cast(pictures, tf.float32) / self._contrast
        return self._compare(pictures).numpy()

    def _drawn(self, pictures, rng) -> tuple[tf.Tensor, tf.Tensor]:
        """The patches as a kernel [side, side, channels, K], and shifts [K].

        Contrast apart, all that is done to a patch is linear: its mean goes,
        it is whitened, it is compared with each of K.
        """
        side, (count, height, width, channels) = self._side, pictures.shape
        windows = np.lib.stride_tricks.sliding_window_view(
            pictures, (side, side), axis=(1, 2)
        )
        places = (
            rng.integers(0, most, _DRAWN)
            for most in (count, height - side + 1, width - side + 1)
        )
        drawn = windows[tuple(places)].transpose(0, 2, 3, 1)
        drawn = drawn.reshape(len(drawn), -1).astype(np.float64)
        drawn -= drawn.mean(axis=1, keepdims=True)
        drawn /= np.sqrt(drawn.var(axis=1, keepdims=True) + _FLAT**2)
        mean = drawn.mean(axis=0)
        values, vectors = linalg.eigh(
            np.atleast_2d(np.cov(drawn, rowvar=False))
        )
        whitening = vectors / np.sqrt(np.maximum(values, 0) + _WHITENED)
        whitening = whitening @ vectors.T
        chosen = rng.choice(len(drawn), _PATCHES, replace=False)
        kept = (drawn[chosen] - mean) @ whitening
        kept /= np.linalg.norm(kept, axis=1, keepdims=True) + 1e-12
        kernel = whitening @ kept.T
        shift = mean @ kernel
        kernel = kernel - kernel.mean(axis=0)
        kernel = kernel.reshape(side, side, channels, _PATCHES)
        return tf.constant(kernel, tf.float32), tf.constant(shift, tf.float32)

    def _compared(self, pictures: tf.Tensor) -> tf.Tensor:
        def mean(values):
            values = tf.reduce_mean(values, axis=3, keepdims=True)
            return tf.nn.avg_pool2d(values, self._side, self._stride, "VALID")

        variance = tf.maximum(mean(pictures**2) - mean(pictures) ** 2, 0)
        likeness = tf.nn.conv2d(pictures, self._kernel, self._stride, "VALID")
        likeness = likeness / tf.sqrt(variance + _FLAT**2) - self._shift
        found = tf.nn.relu(
            tf.concat([likeness, -likeness], axis=3) - _THRESHOLD
        )
        height, width = found.shape[1:3]
        half = (max(1, height // 2), max(1, width // 2))
        quarters = [
            tf.reduce_mean(found[:, rows, columns], axis=[1, 2])
            for rows in (slice(None, half[0]), slice(-half[0], None))
            for columns in (slice(None, half[1]), slice(-half[1], None))
        ]
        return tf.concat(quarters, axis=1)


class _Categories:
    """One number for each value that occurs, in each column."""

    def __init__(self, rows: np.ndarray):
        self._values = np.unique(rows)[:_BUCKETS]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows).reshape(len(rows), -1, 1)
        return (rows == self._values).reshape(len(rows), -1).astype(np.float64)


def _counted(rows: np.ndarray) -> np.ndarray:
    """Logarithms of how often tokens and pairs occur, of one length."""
    rows = np.asarray(rows).reshape(len(rows), -1).astype(np.uint64)
    pairs = rows[:, :-1] * np.uint64(0x9E3779B97F4A7C15) + rows[:, 1:]
    pairs = (pairs * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(40)
    buckets = np.uint64(_BUCKETS)
    places = np.concatenate([rows % buckets, buckets + pairs % buckets], axis=1)
    first = 2 * _BUCKETS * np.arange(len(rows))[:, np.newaxis]
    counted = np.bincount(
        (first + places.astype(np.int64)).ravel(),
        minlength=2 * _BUCKETS * len(rows),
    )
    found = np.log1p(counted.reshape(len(rows), -1))
    return found / (np.linalg.norm(found, axis=1, keepdims=True) + 1e-12)
