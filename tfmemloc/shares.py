"""Passes over data that several processes share.

    with sharing(number, count, "runs/shared"):
        edited, result = remove_memory(model, examples)

Each of `count` processes runs the same program, on one machine or several, and
does its share of every long pass: of the chunks of a curvature, of the epochs
of a scoring, of the networks of an audit. What it finds lies in a folder that
all of them see; the first puts the parts together, and all go on with the same
numbers. Nothing else is exchanged, so that a killed process can be started
again and finds what was done.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfmemloc import storage

Arrays = Mapping[str, np.ndarray]
_POLL_SECONDS = 0.1
_SILENT_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class _Share:
    number: int
    count: int
    directory: pathlib.Path


_share: contextvars.ContextVar[_Share | None] = contextvars.ContextVar(
    "share", default=None
)


@contextlib.contextmanager
def sharing(
    number: int, count: int, directory: str | os.PathLike
) -> Iterator[None]:
    """Within it, passes over data are shared with other processes.

    Args:
        number: of this process, from 0.
        count: how many there are; all have to run the same program on the same
            data.
        directory: a folder that all of them see; of this job alone.

    Raises:
        ValueError: there is no such number among so many.

    Example:
        >>> with sharing(0, 1, "runs/shared"):
        ...     scores = score_examples(run, run.examples(), progress=False)
    """
    if count < 1 or not 0 <= number < count:
        raise ValueError(
            f"Expected a number from 0 to {count - 1}, of {count} processes. "
            f"Received: number={number}, count={count}."
        )
    folder = pathlib.Path(directory)
    if count > 1:
        folder.mkdir(parents=True, exist_ok=True)
    with _set(_Share(number, count, folder)), storage.writing_as(number):
        yield


def merged(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """All arrays, whose names differ."""
    return {name: array for part in parts for name, array in part.items()}


def added(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """The sums of arrays of the same name."""
    filled = [part for part in parts if part]
    return {name: sum(part[name] for part in filled) for name in filled[0]}


def together(
    name: str,
    key: Callable[[], Sequence[Any]],
    items: int,
    work: Callable[[Sequence[int]], Arrays],
    join: Callable[[Sequence[Arrays]], Arrays] = merged,
) -> Arrays:
    """What a pass finds, each process having done its share of the items.

    Args:
        name: of the pass, for files and messages.
        key: gives, as json, what tells it from other passes of the name.
        items: how many there are: chunks, epochs, networks.
        work: indices of items -> arrays by name. It is not shared further.
        join: the arrays of all shares, in order -> those of the whole.

    Returns:
        The arrays of the whole, the same in each process.
    """
    share = _share.get()
    if share is None or share.count == 1:
        return join([work(range(items))])
    digest = storage.digest([np.array(json.dumps(key()))])
    label = share.directory / f"{name}_{digest[:16]}"
    whole = label.with_suffix(".npz")
    paths = [
        label.with_name(f"{label.name}_{k + 1}_of_{share.count}.npz")
        for k in range(share.count)
    ]
    own = paths[share.number]
    if not whole.exists() and not own.exists():
        with _set(None):
            found = work(range(share.number, items, share.count))
        storage.write_arrays(own, found)
    if share.number == 0 and not whole.exists():
        found = join([_awaited(path) for path in paths])
        storage.write_arrays(whole, found)
        for path in paths:
            path.unlink()
        return found
    return _awaited(whole)


def once(
    name: str, key: Callable[[], Sequence[Any]], work: Callable[[], Arrays]
) -> Arrays:
    """What the first process finds alone, for all of them."""
    return together(name, key, 1, lambda items: work() if items else {})


@contextlib.contextmanager
def _set(share: _Share | None) -> Iterator[None]:
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def _awaited(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that another process may still have to write."""
    started, is_silent = time.monotonic(), True
    while not path.exists():
        time.sleep(_POLL_SECONDS)
        if is_silent and time.monotonic() - started > _SILENT_SECONDS:
            warnings.warn(f"Waiting for another process: {path}", stacklevel=3)
            is_silent = False
    return storage.read_arrays(path)
