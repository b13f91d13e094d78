"""The grid of a sweep: axes of flags, and the cells they span."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VALUE = re.compile(r"[\w.+-]+")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid: flag -> value, as text."""

    values: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return ",".join(f"{flag}={value}" for flag, value in self.values)

    @property
    def flags(self) -> list[str]:
        """The flags of the cell's command."""
        return [f"--{flag}={value}" for flag, value in self.values]


def parse_grid(axes: Sequence[str]) -> list[Cell]:
    """The cells of a grid, the last axis changing fastest.

    Args:
        axes: such as `p_gen=0.1,0.2` or `seed=0..4` (4 included).

    Raises:
        ValueError: an axis is not of this form, or a flag has two axes.

    Example:
        >>> [cell.name for cell in parse_grid(["p_gen=0.2", "seed=0..1"])]
        ['p_gen=0.2,seed=0', 'p_gen=0.2,seed=1']
    """
    parsed: dict[str, list[str]] = {}
    for axis in axes:
        flag, _, text = axis.partition("=")
        found = _RANGE.fullmatch(text)
        if found:
            first, last = int(found[1]), int(found[2])
            values = [str(value) for value in range(first, last + 1)]
        else:
            values = text.split(",")
        is_good = _NAME.fullmatch(flag) and all(
            _VALUE.fullmatch(value) for value in values
        )
        if not is_good or not values or len(set(values)) < len(values):
            raise ValueError(
                "An axis of the grid expected a flag and its values, each "
                "once: p_gen=0.1,0.2 or seed=0..4. Received: "
                f"{axis!r}."
            )
        if flag in parsed or flag in ("run_dir", "fresh"):
            raise ValueError(
                f"The flag {flag!r} cannot be an axis of this grid: it is one "
                "already, or the sweep sets it itself."
            )
        parsed[flag] = values
    if not parsed:
        raise ValueError("Expected at least one axis, such as seed=0..2.")
    return [
        Cell(tuple(zip(parsed, values, strict=True)))
        for values in itertools.product(*parsed.values())
    ]
