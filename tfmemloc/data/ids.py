"""Example ids out of string keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def stable_ids(keys: Iterable[str]) -> np.ndarray:
    """Turns string keys (file names, TFDS ids) into permanent int64 ids.

    The id is the first 63 bits of the key's SHA-256. Bytes count as their
    UTF-8 text.

    Args:
        keys: strings, one for each example; not a tensor of a graph.

    Raises:
        TypeError: the keys are a single string, or are not strings.
        ValueError: a key is not text, two keys are equal, or two different
            keys have the same id (probability N**2 / 2**64); both are named.

    Example:
        >>> stable_ids(["a.png", "b.png"]).dtype
        dtype('int64')
    """
    seen: dict[int, str] = {}
    for key in _texts(keys):
        digest = hashlib.sha256(key.encode("utf-8")).digest()
        example_id = int.from_bytes(digest[:8], "big") >> 1
        if example_id in seen:
            raise ValueError(
                f"Keys {seen[example_id]!r} and {key!r} collide: both have id "
                f"{example_id}. Expected a different key for each example."
            )
        seen[example_id] = key
    return np.fromiter(seen, np.int64, len(seen))


def _texts(keys) -> list[str]:
    if isinstance(keys, str | bytes) or not hasattr(keys, "__iter__"):
        raise TypeError(
            "Expected string keys, one for each example. Received: "
            f"{type(keys).__name__} {keys!r}."
        )
    if hasattr(keys, "graph") and not hasattr(keys, "numpy"):
        raise TypeError(
            "`stable_ids` runs in Python, outside of `tf.function` and "
            "`Dataset.map`, where all examples would get one id. Call it on "
            "the list of keys, and zip the ids into the dataset."
        )
    texts = []
    for key in np.asarray(keys).tolist() if hasattr(keys, "numpy") else keys:
        if not isinstance(key, str | bytes | np.str_ | np.bytes_):
            raise TypeError(
                "Expected string keys. Received: a key of type "
                f"{type(key).__name__}, {key!r}. Integers can be ids as they "
                "are."
            )
        try:
            texts.append(
                key.decode("utf-8") if isinstance(key, bytes) else str(key)
            )
        except UnicodeDecodeError as error:
            raise ValueError(
                "Expected keys that are text, or its bytes in UTF-8. Received: "
                f"{key!r}."
            ) from error
    return texts
