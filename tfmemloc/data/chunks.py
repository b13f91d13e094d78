"""Loops over examples, a chunk at a time, in the form that networks take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import auto as tqdm

from tfmemloc.checks import check_count
from tfmemloc.data import rows as rows_
from tfmemloc.data.examples import IDS, TIE_IDS, Examples, input_kinds
from tfmemloc.data.kinds import as_fed


class Chunk(NamedTuple):
    """Some examples, ready to be fed.

    Attributes:
        places: [B] their indices among the examples.
        inputs: name -> [B, ...], scaled; with `example_id`, and `tie_id`
            where examples share memorization units.
        label: [B] or [B, time].
    """

    places: np.ndarray
    inputs: dict[str, np.ndarray]
    label: np.ndarray


def chunk_at(examples: Examples, places: np.ndarray) -> Chunk:
    """The examples at these places."""
    inputs = {
        name: as_fed(rows_.read(examples.inputs[name], places), kind)
        for name, kind in input_kinds(examples).items()
    }
    inputs[IDS] = examples.example_id[places]
    if examples.tie_id is not None:
        inputs[TIE_IDS] = examples.tie_id[places]
    return Chunk(places, inputs, examples.label[places])


def chunks(
    examples: Examples,
    size: int = 512,
    *,
    even: bool = False,
    only: Sequence[int] | None = None,
    words: str = "",
    progress: bool = False,
) -> Iterator[Chunk]:
    """All examples in order, `size` at a time.

    Args:
        examples: of any kind.
        size: examples in a chunk.
        even: make chunks of nearly equal size, not a short one at the end.
        only: the indices of the chunks that are wanted; None: all.
        words: for the progress bar.
        progress: show one.
    """
    check_count("batch_size", size)
    count = len(examples)
    if even:
        parts = np.array_split(np.arange(count), even_count(count, size))
    else:
        parts = [
            np.arange(start, min(start + size, count))
            for start in range(0, count, size)
        ]
    if only is not None:
        parts = [parts[k] for k in only]
    for places in tqdm.tqdm(
        parts, desc=words, unit="chunk", disable=not progress, leave=False
    ):
        yield chunk_at(examples, places)


def even_count(count: int, size: int) -> int:
    """How many chunks of nearly equal size there are, of at most `size`."""
    return max(1, -(-count // size))


def as_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """Inputs and ids as a dict of arrays in memory, in the form for `fit`.

    Example:
        >>> inputs = as_arrays(examples.train)
        >>> sorted(inputs), float(inputs["image"].min())
        (['example_id', 'image'], -1.0)
    """
    return chunk_at(examples, np.arange(len(examples))).inputs
