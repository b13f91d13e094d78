"""Examples from arrays, in memory or on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmemloc.checks import as_array, as_names, few
from tfmemloc.data import rows as rows_
from tfmemloc.data.examples import Examples
from tfmemloc.data.kinds import (
    DEFAULT_NAMES,
    TOKENS,
    check_values,
    checked_input,
    kind_of,
)

# Names of subsets that people give to what they kept aside -> ours.
_MEANT = {
    **dict.fromkeys(("dev", "eval", "val", "valid"), "validation"),
    **dict.fromkeys(("held-out", "held_out", "holdout"), "heldout"),
}


def from_arrays(
    x: Any,
    y: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    ids: Sequence[int] | None = None,
    subset: Sequence[str] | None = None,
    group: Sequence[str] | None = None,
    true_label: Any = None,
    name: str = "examples",
    classes: int | None = None,
    class_names: Sequence[str] = (),
    words: Mapping[str, Sequence[str]] | None = None,
    first_test_id: int | None = None,
) -> Examples:
    """Examples from arrays of any rank; ids are indices unless given.

    Args:
        x: one array, or a dict of arrays by the names of a model's inputs.
            Each is [N, ...]: uint8 pictures (scaled to [-1, 1] when fed),
            integer tokens, or floats (fed as they are). Arrays may lie on
            disk: a `np.memmap`, or the path of a `.npy` file. A single array
            is called `image`, `tokens` or `features`, after what it holds.
        y: [N] or [N, 1] integers from 0; or [N, time] next tokens, where a
            label below 0 does not count. None takes the next token of x.
        x_test: like `x`, with the same names; None if there are no separate
            arrays of test examples (`subset` can mark some in `x`).
        y_test: like `y`.
        ids: integers, not negative, unique: one for each row of `x` and then
            of `x_test`.
        subset: the name of each row's subset in `x`; None is `clean`, or
            `noisy` where the label is not the true one. Rows called
            `heldout`, `validation` or `test` are not trained on.
        group: a name (of a person, source, site) for each row of `x` and then
            of `x_test`.
        true_label: like `y`, where the right labels of `x` are known.
        name: of the data set, for messages.
        classes: the number of classes; None takes the largest label plus one.
        class_names: one for each class, for people; may be empty.
        words: name of an input -> names of its tokens or columns, for people.
        first_test_id: id of the first test example; None goes on counting
            after the training examples.

    Raises:
        ValueError: an array has a wrong shape, dtype or value; the message
            names it.

    Example:
        >>> table = np.random.default_rng(0).normal(size=(6, 3))
        >>> from_arrays(table, [0, 1, 0, 1, 0, 1], ids=range(10, 16))
        Examples('examples': 6 clean; features [3] float64; 2 classes)
    """
    inputs = _named(x, "x", name)
    count = next(iter(inputs.values())).shape[0]
    label = _labels(y, inputs, "y", name)
    true = (
        label
        if true_label is None
        else _labels(true_label, inputs, "true_label", name)
    )
    subsets = _subsets(subset, label, true, name)
    if x_test is not None or y_test is not None:
        if x_test is None:
            raise ValueError(
                f"{name}: x_test expected the test examples of y_test. "
                "Received: None."
            )
        more = _named(x_test, "x_test", name)
        _check_alike(inputs, more, name)
        test = _labels(y_test, more, "y_test", name)
        inputs = {key: _joined(inputs[key], more[key]) for key in inputs}
        label = np.concatenate([label, test])
        true = np.concatenate([true, test])
        subsets = np.append(subsets, np.full(len(test), "test"))
    if ids is None:
        ids = np.arange(len(label))
        if first_test_id is not None:
            ids[count:] += first_test_id - count
    if classes is None:
        classes = int(max(label.max(), true.max(), 0)) + 1
        _warn_of_labels_from_one(label, name)
        _warn_of_odd_classes(label[:count], classes, name)
    return Examples(
        inputs=inputs,
        label=label,
        true_label=true,
        example_id=_ids(ids, len(label), name),
        subset=subsets,
        classes=classes,
        name=name,
        class_names=tuple(class_names),
        group=group,
        words=dict(words or {}),
    )


def _named(x: Any, what: str, name: str) -> dict[str, rows_.Rows]:
    """Inputs by name, opened and checked."""
    is_named = isinstance(x, Mapping)
    found = {}
    for key, values in (x if is_named else {"": x}).items():
        label = f"{what}[{key!r}]" if is_named else what
        values = checked_input(label, _opened(values), name)
        check_values(label, values, name)
        found[str(key) if is_named else DEFAULT_NAMES[kind_of(values)]] = values
    counts = {key: values.shape[0] for key, values in found.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"{name}: {what} expected inputs with the same number of rows, at "
            f"least one input. Received: {counts}."
        )
    return found


def _opened(values: Any) -> Any:
    """The rows of a `.npy` file or memmap; anything else as it is."""
    if isinstance(values, str | os.PathLike):
        if not os.path.isfile(values):
            raise FileNotFoundError(
                "Expected an array, or the name of a `.npy` file. Received: "
                f"{os.fspath(values)!r}, which is no file."
            )
        values = np.load(values, mmap_mode="r", allow_pickle=False)
    return rows_.unmapped(values)


def _labels(y: Any, inputs: Mapping, what: str, name: str) -> np.ndarray:
    """Labels as [N], or the next tokens as [N, time]."""
    first = next(iter(inputs.values()))
    if y is None:
        return _next_tokens(inputs, what, name)
    y = as_array(y)
    count = first.shape[0]
    is_tokens = any(
        y.shape == rows.shape and y.ndim == 2 and kind_of(rows) == TOKENS
        for rows in inputs.values()
    )
    if is_tokens and y.shape[1] > 1 and y.dtype.kind in "iu":
        return y.astype(np.int64)
    if y.shape not in ((count,), (count, 1)) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: {what} expected {count} integers, one for each "
            f"example. Received: shape {y.shape}, dtype {y.dtype}. "
            + _advice(y, count)
        )
    return y.reshape(-1).astype(np.int64)


def _advice(y: np.ndarray, count: int) -> str:
    """What to do with labels of another form."""
    if y.ndim == 2 and len(y) == count and y.dtype.kind in "iufb":
        if (y.sum(axis=1) == 1).all():
            return "One-hot rows become integers by np.argmax(y, axis=1)."
        return (
            "Several labels of one example are not supported; make an "
            "`Examples` for each of them."
        )
    if y.dtype.kind == "f":
        return "y.astype(int) makes integers of whole floats."
    if y.dtype.kind in "iu":
        return "Pass as many labels as there are rows."
    return "np.unique(y, return_inverse=True)[1] makes integers of names."


def _next_tokens(inputs: Mapping, what: str, name: str) -> np.ndarray:
    """Labels that are the next tokens; the last position does not count."""
    tokens = [rows for rows in inputs.values() if kind_of(rows) == TOKENS]
    if len(tokens) != 1 or len(tokens[0].shape) != 2:
        raise ValueError(
            f"{name}: {what} expected labels. Received: None, which stands for "
            "the next token and needs one input of integers [N, time]."
        )
    label = np.full(tokens[0].shape, -1, np.int64)
    label[:, :-1] = np.asarray(tokens[0])[:, 1:]
    return label


def _warn_of_labels_from_one(label: np.ndarray, name: str) -> None:
    if label.ndim == 1 and label.min() == 1:
        warnings.warn(
            f"{name}: the labels go from 1 to {label.max()}, so that no "
            "example is of class 0. Expected labels from 0: pass y - 1, or "
            "say how many classes there are (`classes`).",
            stacklevel=3,
        )


def _warn_of_odd_classes(label: np.ndarray, classes: int, name: str) -> None:
    """Warns where most classes, or the last ones, have no example."""
    if label.ndim > 1:
        return
    seen = np.unique(label)
    if len(seen) < classes / 2 or seen[-1] < classes - 1:
        warnings.warn(
            f"{name}: the largest label is {classes - 1}, and {len(seen)} of "
            f"{classes} classes have a training example. Expected labels that "
            "count the classes from 0; say how many there are (`classes`, or "
            "class_names in a file), if it is right.",
            stacklevel=3,
        )


def _subsets(subset, label, true, name: str) -> np.ndarray:
    if subset is None:
        wrong = label != true
        wrong = wrong if wrong.ndim == 1 else wrong.any(axis=1)
        return np.where(wrong, "noisy", "clean")
    given = as_array(subset)
    found = as_names(given) if given.dtype.kind in "USO" else None
    if (
        found is None
        or found.shape != (len(label),)
        or not np.char.str_len(found).all()
    ):
        raise ValueError(
            f"{name}: subset expected {len(label)} names, one for each row of "
            f"x. Received: shape {given.shape}, dtype {given.dtype}."
        )
    meant = sorted(_MEANT.keys() & {each.lower() for each in found})
    if meant:
        warnings.warn(
            f"{name}: examples of the subset {', '.join(meant)} are trained "
            "on, as those of any name but heldout, validation and test. "
            f"Expected {_MEANT[meant[0]]!r}, if they were kept aside.",
            stacklevel=4,
        )
    return found


def _ids(ids, count: int, name: str) -> np.ndarray:
    ids = as_array(list(ids) if isinstance(ids, range) else ids)
    if ids.shape == (count, 1):
        ids = ids[:, 0]
    if ids.shape != (count,) or ids.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: ids expected {count} integers, one for each row of x and "
            f"then of x_test. Received: shape {ids.shape}, dtype {ids.dtype}. "
            "`tfmemloc.stable_ids(names)` makes ids of names."
        )
    if ids.dtype == np.uint64 and ids.size and ids.max() >= 2**63:
        raise ValueError(
            f"{name}: ids expected integers below 2**63. Received: "
            f"{few(ids[ids >= 2**63])}."
        )
    return ids


def _check_alike(inputs, more, name: str) -> None:
    """Refuses test inputs of other names, sizes or kinds."""

    def described(found):
        return {
            key: f"{list(rows.shape[1:])} {rows.dtype}"
            for key, rows in found.items()
        }

    if inputs.keys() != more.keys() or any(
        inputs[key].shape[1:] != more[key].shape[1:]
        or inputs[key].dtype != more[key].dtype
        for key in inputs
    ):
        raise ValueError(
            f"{name}: expected training and test examples of the same names, "
            f"sizes and dtypes. Received: {described(inputs)} and "
            f"{described(more)}."
        )


def _joined(first: rows_.Rows, second: rows_.Rows) -> rows_.Rows:
    """Both, one below the other."""
    if isinstance(first, np.memmap) or not isinstance(first, np.ndarray):
        return rows_.Stacked(first, second)
    return np.concatenate([first, np.asarray(second)])
