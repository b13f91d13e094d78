"""What every method gives back: rows, a table, a sentence, figures, numbers.

A result is a frozen dataclass that stands in the file of its method. Its
arrays are saved as `.npz` and everything else as `.json`, which also names the
class, so that `Result.load` reads any result. Axes in comments: N examples,
G layer groups, E epochs, S subsets, U units.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from tfmemloc import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

AnyResult = TypeVar("AnyResult", bound="Result")
Row = Mapping[str, Any]

_VERSION = 2
# Where the results of version 1 stand now: name of the class -> module, class.
_MOVED = {
    "SubsetMetrics": ("tfmemloc.evaluation", "SubsetMetrics"),
    "Localization": ("tfmemloc.removal.drop", "NetworkComparison"),
    "GradientAccounting": (
        "tfmemloc.probes.gradient_accounting",
        "GradientAccounting",
    ),
    "LayerRewinding": ("tfmemloc.probes.layer_rewinding", "LayerRewinding"),
    "LayerRetraining": ("tfmemloc.probes.layer_retraining", "LayerRetraining"),
    "CriticalUnits": ("tfmemloc.probes.critical_units", "CriticalUnits"),
    "ExampleScores": ("tfmemloc.scores.example_scores", "ExampleScores"),
    "MemorizationEstimates": (
        "tfmemloc.scores.memorization",
        "MemorizationEstimates",
    ),
    "SweepResults": ("tfmemloc.sweeps.results", "SweepResults"),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing, and the words under it."""

    caption: str
    drawing: Drawing


@dataclasses.dataclass(frozen=True)
class Table:
    """The few rows that a person reads.

    Attributes:
        rows: flat dicts with the keys of the first one.
        formats: column -> format of its floats; `default` is for the others.
        default: such as `.1%` or `.3g`.
    """

    rows: Sequence[Row]
    formats: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default: str = ".1%"

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.rows[0]) if self.rows else []

    def cell(self, row: Row, column: str) -> str:
        """The text of a cell; `-` where nothing is known."""
        value = row.get(column)
        if value is None:
            return "-"
        if isinstance(value, float):
            return format(value, self.formats.get(column, self.default))
        return str(value)

    def is_text(self, column: str) -> bool:
        """Whether a column holds words, which are set flush left."""
        return isinstance(self.rows[0][column], str)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The base class of all results."""

    title: ClassVar[str] = "Result"
    # Fields of version 1 -> their names now; None: the field is gone.
    renamed: ClassVar[Mapping[str, str | None]] = {}

    def __str__(self) -> str:
        """What `print` shows, instead of all arrays."""
        return f"{self.title}. {self.sentence()}"

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per cell of the arrays; pandas takes the list."""
        raise TypeError(f"{type(self).__name__} defines no rows.")

    def saved_rows(self) -> list[Row]:
        """The rows in the `.json`: all, where there is no reason for fewer."""
        return self.rows()

    def table(self) -> Table:
        """The few rows that a person reads."""
        return Table(self.rows())

    def sentence(self) -> str:
        """What the result shows, and how sure that is."""
        return ""

    def figures(self) -> dict[str, Figure]:
        """Figures by the name of their file."""
        return {}

    def key_numbers(self) -> dict[str, float]:
        """The few numbers by which seeds and sweeps are compared."""
        return {}

    def save(self, path: str | os.PathLike) -> None:
        """Writes `<path>.npz` (arrays) and `<path>.json` (the rest, and rows).

        Args:
            path: without ending; its folder must exist.
        """
        path = pathlib.Path(path)
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
        }
        arrays = {
            name: value
            for name, value in fields.items()
            if isinstance(value, np.ndarray)
        }
        storage.write_arrays(path.with_name(path.name + ".npz"), arrays)
        storage.write_json(
            path.with_name(path.name + ".json"),
            {
                "version": _VERSION,
                "module": type(self).__module__,
                "type": type(self).__qualname__,
                "fields": {
                    name: value
                    for name, value in fields.items()
                    if name not in arrays
                },
                "rows": self.saved_rows(),
            },
        )

    @classmethod
    def load(cls: type[AnyResult], path: str | os.PathLike) -> AnyResult:
        """Reads what `save` wrote, version 1 included.

        `Result.load` reads any result; that of a subclass reads its own only.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ValueError: the files hold another type of result, one whose class
                is not known, or are damaged.

        Example:
            >>> result = Result.load("runs/demo/layer_rewinding")
            >>> type(result).__name__
            'LayerRewinding'
        """
        path = pathlib.Path(path)
        header = storage.read_json(path.with_name(path.name + ".json"))
        kind = _class_of(header, path)
        if not issubclass(kind, cls):
            raise ValueError(
                f"{path}.json expected a result of type {cls.__name__}. "
                f"Received: {header.get('type')!r}."
            )
        fields = {
            name: _as_tuple(value) for name, value in _fields(header).items()
        }
        fields |= storage.read_arrays(path.with_name(path.name + ".npz"))
        if "version" not in header:
            fields = {
                kind.renamed.get(name, name): value
                for name, value in fields.items()
                if kind.renamed.get(name, name) is not None
            }
        try:
            return kind(**fields)
        except TypeError as error:
            raise storage.DamagedFileError(
                f"{path} does not hold the fields of {kind.__name__}: {error}. "
                "It is damaged or of another version; delete its .json and "
                ".npz, and the same command makes them anew."
            ) from error


def is_result(path: str | os.PathLike) -> bool:
    """Whether `<path>.json` and `<path>.npz` are a saved result."""
    path = pathlib.Path(path)
    file = path.with_name(path.name + ".json")
    if not (file.exists() and path.with_name(path.name + ".npz").exists()):
        return False
    header = storage.read_json(file)
    return isinstance(header, dict) and {"type", "fields"} <= set(header)


def _fields(header: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = header.get("fields")
    return fields if isinstance(fields, Mapping) else {}


def _as_tuple(value):
    """JSON has no tuples."""
    if isinstance(value, list):
        return tuple(_as_tuple(item) for item in value)
    return value


def _class_of(header: Any, path: pathlib.Path) -> type[Result]:
    """The class that a `.json` names.

    A module of tfmemloc is imported; any other must have been imported by the
    caller, so that a file cannot choose what runs.
    """
    found = header if isinstance(header, dict) else {}
    name, module = found.get("type"), found.get("module")
    if "version" not in found and name in _MOVED:
        module, name = _MOVED[name]
    is_ours = isinstance(module, str) and module.startswith("tfmemloc.")
    try:
        holder = (
            importlib.import_module(module)
            if is_ours
            else sys.modules.get(module)
        )
        kind = getattr(holder, name, None)
    except (ImportError, TypeError, AttributeError):
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, Result)):
        raise ValueError(
            f"{path}.json expected a result: the name of its module and class. "
            f"Received: module {module!r}, type {name!r}. Import the module of "
            "a class of your own first."
        )
    return kind


def or_none(value: float) -> float | None:
    """The number, or None where it is NaN or infinite, as JSON has neither."""
    return float(value) if np.isfinite(value) else None
