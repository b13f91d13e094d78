"""Examples that carry their ids.

Everything that is kept of an example is keyed on its *example id*. The id
belongs to the example, whatever its current position: unless the user gives
ids, it is the index in the data set's fixed reading order (test examples follow
the training ones). Slicing, shuffling and relabelling keep ids. All randomness
is a function of (seed, example id) or (seed, step).

Inputs may be pictures, tokens or features, one or several, in memory or on
disk; none is copied when examples are selected (see `rows`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmemloc import storage, subsets
from tfmemloc.checks import as_ids, few
from tfmemloc.data import checks
from tfmemloc.data import rows as rows_
from tfmemloc.data.kinds import PICTURE, kind_of
from tfmemloc.subsets import OfSubsets

# The name of the ids among the inputs.
IDS = "example_id"
# Beside them, where several examples share their memorization units.
TIE_IDS = "tie_id"
CLASSES, NEXT_TOKEN = "classes", "next_token"


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(OfSubsets):
    """The examples of one data set: those trained on, and all others.

    `tfmemloc.from_arrays` makes them from arrays and checks the values.

    Attributes:
        inputs: name of an input -> its rows [N, ...].
        label: [N] int64, as trained on; or [N, time] the next tokens, where a
            label below 0 does not count.
        true_label: like `label`, as the data set gives it.
        example_id: [N] int64, unique, not negative.
        subset: [N] names; see `tfmemloc.subsets` for those with a meaning.
        classes: the number of classes, or of tokens.
        name: of the data set, for messages.
        class_names: one for each class, for people; may be empty.
        group: [N] names of a person, source or site, or None.
        words: name of an input -> names of its tokens or columns, for people.
        tie_id: [N] int64, whose memorization units an example uses, where
            several share them because they are to be forgotten as one: the
            rows of a document, the repeats of a sequence. None: its own.

    Example:
        >>> examples.train.of_subset("noisy").label.shape
        (16,)
        >>> examples.of_ids(examples.example_id[[5, 3]]).inputs["image"].shape
        (2, 8, 8, 1)
    """

    inputs: Mapping[str, rows_.Rows]
    label: np.ndarray
    true_label: np.ndarray
    example_id: np.ndarray
    subset: np.ndarray
    classes: int
    name: str = "examples"
    class_names: tuple[str, ...] = ()
    group: np.ndarray | None = None
    words: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    tie_id: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "inputs", _frozen_inputs(self))
        count = next(iter(self.inputs.values())).shape[0]
        for field in ("label", "true_label", "example_id", "tie_id"):
            if getattr(self, field) is not None:
                object.__setattr__(
                    self, field, checks.integers(self, field, count)
                )
        for field in ("subset", "group"):
            if getattr(self, field) is not None:
                object.__setattr__(
                    self, field, checks.names(self, field, count)
                )
        checks.check_labels(self)
        checks.check_unique_ids(self)
        if len(self.class_names) not in (0, self.classes):
            raise ValueError(
                f"{self.name}: expected {self.classes} class names, or none. "
                f"Received: {len(self.class_names)}."
            )

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{np.sum(self.subset == name)} {name}" for name in self.subsets
        )
        inputs = ", ".join(
            f"{name} {list(rows.shape[1:])} {rows.dtype}"
            for name, rows in self.inputs.items()
        )
        return (
            f"Examples({self.name!r}: {counts}; {inputs}; "
            f"{self.classes} classes)"
        )

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def task(self) -> str:
        """`classes` or `next_token`."""
        return CLASSES if self.label.ndim == 1 else NEXT_TOKEN

    @property
    def ties(self) -> np.ndarray:
        """[N] whose memorization units each example uses."""
        return self.example_id if self.tie_id is None else self.tie_id

    @functools.cached_property
    def subsets(self) -> tuple[str, ...]:
        """The names of the subsets that occur, training first."""
        return subsets.ordered(np.unique(self.subset).tolist())

    @functools.cached_property
    def is_trained_on(self) -> np.ndarray:
        """[N] bool: whether an example is trained on."""
        return subsets.is_trained_on(self.subset)

    @functools.cached_property
    def train(self) -> Examples:
        """The examples that are trained on."""
        return self.take(self.is_trained_on)

    @functools.cached_property
    def test(self) -> Examples:
        """The test examples."""
        return self.take(self.subset == "test")

    def class_name(self, label: int) -> str:
        """The name of a class; its number where it has none."""
        return self.class_names[label] if self.class_names else str(label)

    def of_subset(self, name: str) -> Examples:
        """The examples of one subset.

        Raises:
            ValueError: there are none.
        """
        if name not in self.subsets:
            raise ValueError(
                f"{self.name} has no subset {name!r}. Expected one of "
                f"{', '.join(map(repr, self.subsets))}."
            )
        return self.take(self.subset == name)

    def of_ids(self, example_ids: Sequence[int]) -> Examples:
        """The examples with these ids, in the order given.

        Raises:
            ValueError: an id does not occur.
        """
        wanted = as_ids(self.name, example_ids)
        place, is_missing = places_of(self.example_id, wanted)
        if is_missing.any():
            known = "none, as it has no examples"
            if len(self):
                known = f"ids from {self.example_id.min()} to "
                known += f"{self.example_id.max()}"
            raise ValueError(
                f"{self.name} has no example with id "
                f"{few(wanted[is_missing])}. Expected {known}."
            )
        return self.take(place)

    def trained_on(self, example_ids: np.ndarray) -> Examples:
        """The training examples with these ids, and all other subsets."""
        kept = np.isin(self.example_id, example_ids)
        return self.take(kept | ~self.is_trained_on)

    def take(self, index: np.ndarray) -> Examples:
        """The examples at a boolean or integer index; ids stay.

        No input is copied.
        """
        columns = (
            *("label", "true_label", "example_id", "subset", "group"),
            "tie_id",
        )
        return dataclasses.replace(
            self,
            inputs={
                name: rows_.taken(rows, index)
                for name, rows in self.inputs.items()
            },
            **{
                field: getattr(self, field)[index]
                for field in columns
                if getattr(self, field) is not None
            },
        )

    def fingerprint(self) -> dict[str, dict[str, str | int]]:
        """Checksums of ids, labels and inputs, trained on (`train`) or not."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> dict[str, dict[str, str | int]]:
        return {
            "train": _checksums(self, np.flatnonzero(self.is_trained_on)),
            "test": _checksums(self, np.flatnonzero(~self.is_trained_on)),
        }

    def inputs_digest(self) -> str:
        """One checksum of the inputs that are trained on."""
        train = self.fingerprint()["train"]
        return "-".join(str(train[name]) for name in self.inputs)

    def digest(self) -> str:
        """One checksum of ids, labels, and the inputs that are trained on."""
        of = storage.digest([self.example_id, self.label])
        return f"{of}-{self.inputs_digest()}"


def places_of(
    ids: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where in `ids` each of the wanted ones is, and which are not there.

    Args:
        ids: [N] integers, unique, in any order.
        wanted: [M] integers.

    Returns:
        ([M] places, of no meaning where the id is missing; [M] bool, missing).
    """
    if not len(ids):
        return np.zeros(len(wanted), np.int64), np.ones(len(wanted), bool)
    order = np.argsort(ids)
    place = np.searchsorted(ids, wanted, sorter=order)
    place = order[np.minimum(place, len(ids) - 1)]
    return place, ids[place] != wanted


def check_fingerprint(examples: Examples, expected: Mapping) -> None:
    """Refuses examples other than those with which a run was started.

    Raises:
        ValueError: says which set and what in it differs.
    """
    found = examples.fingerprint()
    wrong = [
        f"{part} {what} (expected {expected[part].get(what)}, received {value})"
        for part in found
        for what, value in found[part].items()
        if expected.get(part, {}).get(what) != value
    ]
    if wrong:
        raise ValueError(
            f"{examples.name} is not the data this run was made with; these "
            f"differ: {'; '.join(wrong)}. Use the same data set, version, "
            "number of examples and noise as in the run, or another run "
            "directory."
        )


def _checksums(examples: Examples, places: np.ndarray) -> dict:
    places = places[np.argsort(examples.example_id[places])]
    columns = {
        name: getattr(examples, name)
        for name in ("example_id", "label", "true_label", "tie_id")
        if getattr(examples, name) is not None
    }
    return {"examples": len(places)} | {
        name: rows_.digest(rows, places)
        for name, rows in (columns | dict(examples.inputs)).items()
    }


def _frozen_inputs(examples: Examples) -> dict[str, rows_.Rows]:
    """The inputs, read-only; all of one number of rows."""
    if not isinstance(examples.inputs, Mapping) or not examples.inputs:
        raise ValueError(
            f"{examples.name}: expected inputs by name, such as "
            f'{{"image": images}}. Received: {type(examples.inputs).__name__}.'
        )
    reserved = {IDS, TIE_IDS, "label", "true_label", "examples"} & set(
        examples.inputs
    )
    if reserved:
        raise ValueError(
            f"{examples.name}: an input cannot be called "
            f"{', '.join(sorted(reserved))}, which is kept beside the inputs. "
            "Expected another name."
        )
    frozen, counts = {}, {}
    for name, rows in examples.inputs.items():
        counts[name] = rows.shape[0]
        if rows.dtype.kind not in "iufb":
            raise ValueError(
                f"{examples.name}: {name} expected numbers. Received: dtype "
                f"{rows.dtype}."
            )
        if isinstance(rows, np.ndarray):
            rows = rows.view()
            rows.flags.writeable = False
        frozen[str(name)] = rows
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"{examples.name}: expected inputs of the same number of examples. "
            f"Received: {counts}."
        )
    return frozen


def require_examples(value: Any) -> None:
    """Refuses what is no `Examples`.

    Raises:
        TypeError: says what makes them.
    """
    if not isinstance(value, Examples):
        raise TypeError(
            "Expected Examples, which `from_arrays(x, y)`, `load(config)` or "
            f"`run.examples()` give. Received: {type(value).__name__}."
        )


def require_some(value: Any) -> None:
    """Refuses what is no `Examples`, and none of them.

    Raises:
        TypeError: says what makes them.
        ValueError: there are none.
    """
    require_examples(value)
    if not len(value):
        raise ValueError(f"{value.name} has no examples. Expected some.")


def input_kinds(examples: Examples) -> dict[str, str]:
    """Name of an input -> `picture`, `tokens` or `features`."""
    return {name: kind_of(rows) for name, rows in examples.inputs.items()}


def pictures_of(examples: Examples) -> list[str]:
    """The names of the inputs that are pictures."""
    kinds = input_kinds(examples)
    return [name for name, kind in kinds.items() if kind == PICTURE]
