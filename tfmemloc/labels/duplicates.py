"""Examples that come twice: with different labels, or in training and test.

Of two equal pictures with different labels one label is wrong; and a test set
of which a part was trained on measures memory. Pictures are also found where
they are nearly equal (saved anew, scaled back): their pixels differ by no more
than a little on the mean, and they are much nearer to each other than to
others: two ones in one hand differ little, and are no duplicates (of the
simplest pictures some are found all the same). So a burst of more than ten
nearly equal pictures is taken for what is usual there, and not found. Anything
else is a duplicate where all its numbers are the same.

Equal ones are found by their digests; nearly equal ones by a k-d tree of the
sums of 4 x 4 cells, and then looked at.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from scipy import spatial

from tfmemloc.checks import check_range
from tfmemloc.data import input_kinds
from tfmemloc.data import rows as rows_
from tfmemloc.data.examples import Examples, require_examples
from tfmemloc.fields import check_fields
from tfmemloc.result import Result, Table
from tfmemloc.subsets import NOT_TRAINED_ON

_GRID = 4
_PAIRS = 256  # That are looked at at once.
# A duplicate is among so many nearest ones, and differs less than the last of
# so many neighbours by this factor.
_ASKED, _NEIGHBOURS, _MUCH_NEARER = 3, 10, 1 / 3
# Kinds of pairs, the worst first.
KINDS = ("different labels", "in training and test", "same label")


@dataclasses.dataclass(frozen=True)
class DuplicateConfig:
    """What counts as the same picture.

    Attributes:
        difference: mean absolute difference of two pictures up to which they
            are the same, where 1 is from black to white (of floats, their own
            numbers); 0 takes equal ones alone.
    """

    difference: float = 0.03

    def __post_init__(self):
        check_fields(self)
        check_range("difference", self.difference, 0.0, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates(Result):
    """Pairs of examples with the same inputs, or nearly so."""

    title: ClassVar[str] = "Which examples come twice?"

    dataset: str
    examples: int
    example_id: np.ndarray  # [P] of the later one.
    label: np.ndarray  # [P] as given.
    subset: np.ndarray  # [P].
    first_id: np.ndarray  # [P] of the first one of its kind.
    first_label: np.ndarray  # [P].
    first_subset: np.ndarray  # [P].
    difference: np.ndarray  # [P] mean over pixels; 0 where they are equal.

    @property
    def kind(self) -> np.ndarray:
        """[P] one of `KINDS`."""
        is_other = self.label != self.first_label
        if is_other.ndim > 1:
            is_other = is_other.any(axis=1)
        trained = [
            ~np.isin(subset, NOT_TRAINED_ON)
            for subset in (self.subset, self.first_subset)
        ]
        return np.select(
            [is_other, trained[0] != trained[1]], KINDS[:2], KINDS[2]
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each pair, those with different labels first."""
        kind = self.kind
        order = np.argsort([KINDS.index(k) for k in kind], kind="stable")
        return [
            {
                "example_id": int(self.example_id[p]),
                "first_id": int(self.first_id[p]),
                "kind": str(kind[p]),
                "label": self.label[p].tolist(),
                "first_label": self.first_label[p].tolist(),
                "subset": str(self.subset[p]),
                "first_subset": str(self.first_subset[p]),
                "difference": float(self.difference[p]),
            }
            for p in order
        ]

    def table(self) -> Table:
        """How many pairs there are of each kind, and how many are equal."""
        kind, equal = self.kind, self.difference == 0
        return Table(
            [
                {
                    "pairs": name,
                    "number": str(int((kind == name).sum())),
                    "of them equal": str(int((equal & (kind == name)).sum())),
                }
                for name in KINDS
            ]
        )

    def sentence(self) -> str:
        """How many, and which of them are to be looked at."""
        if not len(self.kind):
            return f"No two of {self.examples} examples are the same."
        counts = ", ".join(
            f"{int((self.kind == name).sum())} {words}"
            for name, words in zip(
                KINDS,
                (
                    "with another label",
                    "with the same label in training and in a part that is "
                    "not trained on",
                    "with the same label in the same part",
                ),
                strict=True,
            )
        )
        equal = int((self.difference == 0).sum())
        text = (
            f"{len(self.kind)} of {self.examples} examples of {self.dataset} "
            f"repeat an earlier one"
        )
        if equal < len(self.kind):
            text += (
                f", or nearly so ({equal} are equal; look at the others: "
                "simple pictures, such as strokes, may be alike by chance)"
            )
        return f"{text}: {counts}."

    def key_numbers(self) -> dict[str, float]:
        """Pairs of each kind."""
        return {name: float((self.kind == name).sum()) for name in KINDS}


def find_duplicates(
    examples: Examples, config: DuplicateConfig = DuplicateConfig()
) -> Duplicates:
    """Finds examples that come twice, in all subsets.

    Args:
        examples: of any kind.
        config: what counts as the same picture.

    Example:
        >>> picture = np.tile(np.arange(64, dtype=np.uint8), (3, 1))
        >>> picture[2] = 255 - picture[2]
        >>> twice = from_arrays(picture.reshape(3, 8, 8, 1), [0, 1, 1])
        >>> [row["kind"] for row in find_duplicates(twice).rows()]
        ['different labels']
    """
    require_examples(examples)
    pairs = _equal(examples)
    if set(input_kinds(examples).values()) == {"picture"} and config.difference:
        repeats = np.array([later for later, _, _ in pairs], int)
        rest = np.setdiff1d(np.arange(len(examples)), repeats)
        pairs += _near(examples, rest, config.difference)
    later, first, difference = (
        np.array([pair[k] for pair in sorted(pairs)]) for k in range(3)
    )
    later, first = later.astype(int), first.astype(int)
    return Duplicates(
        dataset=examples.name,
        examples=len(examples),
        example_id=examples.example_id[later],
        label=examples.label[later],
        subset=examples.subset[later],
        first_id=examples.example_id[first],
        first_label=examples.label[first],
        first_subset=examples.subset[first],
        difference=difference.astype(float),
    )


def _equal(examples: Examples) -> list[tuple[int, int, float]]:
    """(later, first, 0) of examples whose inputs are the same."""
    firsts: dict[tuple[bytes, ...], int] = {}
    pairs = []
    digests = (_digests(rows) for rows in examples.inputs.values())
    for place, key in enumerate(zip(*digests, strict=True)):
        first = firsts.setdefault(key, place)
        if first != place:
            pairs.append((place, first, 0.0))
    return pairs


def _digests(rows: rows_.Rows) -> Iterator[bytes]:
    """Of each row."""
    for block in rows_.blocks(rows, np.arange(rows.shape[0])):
        for row in block:
            yield hashlib.sha256(row.tobytes()).digest()


def _near(
    examples: Examples, places: np.ndarray, most: float
) -> list[tuple[int, int, float]]:
    """(later, first, difference) of pictures that are nearly the same.

    The sums of cells differ by no more than their pixels do, so that the
    nearest ones by these sums are the ones to look at.
    """
    sums = np.concatenate(
        [
            np.concatenate(
                [_cells(_scaled(b)) for b in rows_.blocks(rows, places)]
            )
            for rows in examples.inputs.values()
        ],
        axis=1,
    )
    tree = spatial.cKDTree(sums / len(examples.inputs))
    # A list of neighbours, so that a single one has an axis as well.
    asked = range(1, min(_ASKED + 1, len(places)) + 1)
    distance, neighbour = tree.query(
        tree.data, k=asked, p=1, distance_upper_bound=most, workers=-1
    )
    row, column = np.nonzero(np.isfinite(distance))
    pairs = np.stack([row, neighbour[row, column]], axis=1)
    pairs = np.unique(np.sort(pairs[row != pairs[:, 1]], axis=1), axis=0)
    # Those with the first ones first.
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    found: dict[int, tuple[int, int, float]] = {}
    for start in range(0, len(pairs), _PAIRS):
        first, later = pairs[start : start + _PAIRS].T
        differences = _differences(examples, places[later], places[first])
        limit = np.full(len(later), most)
        if len(places) > _NEIGHBOURS:
            _, others = tree.query(
                tree.data[later], k=[_NEIGHBOURS + 1], p=1, workers=-1
            )
            usual = _differences(examples, places[later], places[others[:, 0]])
            limit = np.minimum(limit, _MUCH_NEARER * usual)
        for n in np.flatnonzero(differences <= limit):
            pair = places[later[n]], places[first[n]], differences[n]
            found.setdefault(int(later[n]), pair)
    return [(int(a), int(b), float(d)) for a, b, d in found.values()]


def _differences(
    examples: Examples, some: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Mean absolute differences of pictures, one by one."""
    found = []
    for rows in examples.inputs.values():
        a, b = (_scaled(rows_.read(rows, side)) for side in (some, others))
        found.append(np.abs(a - b).mean(axis=tuple(range(1, a.ndim))))
    return np.mean(found, axis=0)


def _scaled(pictures: np.ndarray) -> np.ndarray:
    """In [0, 1] where they are integers, else as they are."""
    largest = 1.0
    if pictures.dtype.kind in "iu":
        largest = float(np.iinfo(pictures.dtype).max)
    return pictures.astype(np.float32) / np.float32(largest)


def _cells(pictures: np.ndarray) -> np.ndarray:
    """[B, h, w, c] -> [B, cells]: sums of a grid of cells, over all pixels."""
    cells = pictures.mean(axis=-1) / np.prod(pictures.shape[1:3])
    for axis in (1, 2):
        size = cells.shape[axis]
        edges = np.linspace(0, size, min(_GRID, size) + 1).astype(int)
        cells = np.add.reduceat(cells, edges[:-1], axis=axis)
    return cells.reshape(len(cells), -1)
