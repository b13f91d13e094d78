"""Rows of inputs, in memory or on disk, that are read by their index.

An input is anything that has a shape and a dtype and gives the rows at an array
of indices (`places`): a NumPy array, a `np.memmap`, a random-access source. A
selection of rows is a `View`, so that no input is ever copied as a whole.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from tfmemloc import portability

# How many bytes are read at a time where all rows are wanted.
_BLOCK = 16 * 2**20


class Rows(Protocol):
    """What an input has to offer."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, places: Any) -> np.ndarray:
        """The rows at an array of places."""


class View:
    """A selection of the rows of an input, in any order; nothing is copied.

    Args:
        base: the rows.
        places: [N] which of them.
    """

    def __init__(self, base: Rows, places: np.ndarray):
        if isinstance(base, View):
            base, places = base._base, base._places[places]
        self._base, self._places = base, places

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all rows together."""
        return (len(self._places), *self._base.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers."""
        return self._base.dtype

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self._base.shape)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> np.ndarray:
        if index is Ellipsis or (
            isinstance(index, tuple) and index[0] is Ellipsis
        ):
            return self[:][index]
        first, rest = index, ()
        if isinstance(index, tuple):
            first, *rest = index
        places = self._places[first]
        if np.ndim(places) == 0:
            found = read(self._base, np.array([places]))[0]
        else:
            found = read(self._base, places)
            rest = (slice(None), *rest)
        return found[tuple(rest)] if rest else found

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        del copy
        found = self[:]
        return found if dtype is None else found.astype(dtype)


class Stacked:
    """The rows of one input, then those of another; nothing is copied.

    Args:
        first: [N, ...].
        second: [M, ...] of the same sizes and dtype.
    """

    def __init__(self, first: Rows, second: Rows):
        self._parts = first, second
        self._count = first.shape[0]
        self.shape = (self._count + second.shape[0], *first.shape[1:])
        self.dtype = first.dtype

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        places = as_places(places, self.shape[0])
        is_first = places < self._count
        if is_first.all():
            return read(self._parts[0], places)
        if not is_first.any():
            return read(self._parts[1], places - self._count)
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        found[is_first] = read(self._parts[0], places[is_first])
        found[~is_first] = read(self._parts[1], places[~is_first] - self._count)
        return found

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        del copy
        found = self[np.arange(self.shape[0])]
        return found if dtype is None else found.astype(dtype)


class FileRows:
    """Rows of a file, read one by one where they lie.

    A mapped file would count as memory of the process as soon as its pages
    were touched, and a page fault brings many rows that nobody asked for.

    Args:
        path: of the file.
        offset: of the first row, in bytes.
        shape: [N, ...].
        dtype: of the numbers.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self._arguments = path, offset, tuple(shape), dtype
        self._on_disk = np.dtype(dtype)
        self.shape, self.dtype = tuple(shape), self._on_disk.newbyteorder("=")
        self._offset = offset
        numbers = int(np.prod(self.shape[1:], dtype=np.int64))
        self._each = self.dtype.itemsize * numbers
        self._file = portability.open_to_read(path)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self):
        # A copy opens the file anew: this one's is closed with this one.
        return FileRows, self._arguments

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        places = as_places(places, self.shape[0])
        found = np.empty((len(places), *self.shape[1:]), self._on_disk)
        flat = memoryview(found.reshape(-1).view(np.uint8))
        # Adjacent rows are read together.
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        for run in np.split(np.arange(len(places)), breaks):
            if len(run):
                self._read_into(
                    flat[run[0] * self._each : (run[-1] + 1) * self._each],
                    self._offset + int(places[run[0]]) * self._each,
                )
        return found.astype(self.dtype, copy=False)

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        while len(buffer):
            count = portability.read_into(self._file, buffer, offset)
            if not count:
                raise OSError(
                    f"The file of {self.shape[0]} rows ended early. It was "
                    "shortened after it was opened."
                )
            buffer, offset = buffer[count:], offset + count

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        del copy
        found = self[np.arange(self.shape[0])]
        return found if dtype is None else found.astype(dtype)


def unmapped(values: np.ndarray) -> Rows:
    """A read-only `np.memmap` as rows of its file; any other array as it is.

    An array that is writable or not contiguous stays mapped.
    """
    is_plain = (
        isinstance(values, np.memmap)
        and values.mode == "r"
        and values.filename is not None
        and values.flags.c_contiguous
        and values.ndim > 0
    )
    if not is_plain:
        return values
    whole = values
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    start = values.__array_interface__["data"][0]
    start -= whole.__array_interface__["data"][0]
    return FileRows(
        values.filename, whole.offset + start, values.shape, values.dtype
    )


def read(rows: Rows, places: np.ndarray) -> np.ndarray:
    """The rows at these places, as an array in memory.

    Adjacent rows of an array in memory are not copied.
    """
    if not isinstance(rows, np.ndarray):
        return np.asarray(rows[places])
    is_run = len(places) > 0 and _is_run(places)
    return rows[slice(places[0], places[-1] + 1) if is_run else places]


def _is_run(places: np.ndarray) -> bool:
    return len(places) == 1 or bool((np.diff(places) == 1).all())


class WithChannel:
    """Grey pictures [N, height, width] with a last axis of one channel.

    Args:
        rows: of rank 3.
    """

    def __init__(self, rows: Rows):
        self._rows = rows
        self.shape = (*rows.shape, 1)
        self.dtype = rows.dtype

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return read(self._rows, places)[..., np.newaxis]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        del copy
        found = self[np.arange(self.shape[0])]
        return found if dtype is None else found.astype(dtype)


def as_places(index: Any, count: int) -> np.ndarray:
    """Places from 0 of an index into `count` rows.

    Args:
        index: integers, which may be negative, booleans, or a slice.
        count: of the rows.

    Raises:
        IndexError: a place is not there.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(count))
    index = np.asarray(index)
    if index.dtype == bool:
        if index.shape != (count,):
            raise IndexError(
                f"Expected {count} booleans, one for each row. Received: shape "
                f"{index.shape}."
            )
        return np.flatnonzero(index)
    places = np.where(index < 0, index + count, index).astype(np.int64)
    if places.size and not (places.min() >= 0 and places.max() < count):
        raise IndexError(
            f"Expected places from {-count} to {count - 1}. Received: "
            f"{index.min()} to {index.max()}."
        )
    return places


def taken(rows: Rows, index: np.ndarray) -> Rows:
    """The rows at a boolean or integer index, as a view."""
    return View(rows, as_places(index, rows.shape[0]))


def blocks(rows: Rows, places: np.ndarray) -> Iterator[np.ndarray]:
    """The rows at many places, a few MiB at a time."""
    each = rows.dtype.itemsize * int(np.prod(rows.shape[1:], dtype=np.int64))
    size = max(1, _BLOCK // max(1, each))
    for start in range(0, len(places), size):
        yield read(rows, places[start : start + size])


def digest(rows: Rows, places: np.ndarray) -> str:
    """A checksum of the rows at these places, in this order."""
    result = hashlib.sha256()
    for block in blocks(rows, places):
        result.update(np.ascontiguousarray(block).data)
    return result.hexdigest()[:16]
