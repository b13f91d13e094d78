"""A page that shows a training while it runs.

It is written anew after each epoch and reloads itself until the last one. The
curves are drawn in the page itself, which costs a training nothing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfmemloc.report.figures import LINES, WORDS, color_of
from tfmemloc.report.html import write_template
from tfmemloc.runs import Run

PAGE = "live.html"
# Of the drawing, in its own units.
_WIDTH, _HEIGHT = 720, 320
_ENDED = ". The training has ended."


@dataclasses.dataclass(frozen=True)
class Curve:
    """The accuracy of one subset in one behaviour.

    Attributes:
        name: "noisy, dropped".
        color: of the subset.
        is_dashed: whether the memory is off.
        points: of the line, as the page takes them: "0.0,320.0 24.0,280.0".
        last: the last accuracy, in percent.
    """

    name: str
    color: str
    is_dashed: bool
    points: str
    last: str


def write_live_page(run: Run, epoch: int | None = None) -> None:
    """Writes `live.html` into a run's folder; for `train(on_epoch_end=...)`.

    Args:
        run: that `train` trains, after an epoch.
        epoch: the last one that was finished; None where the training has
            ended, be it before the last epoch (`stop_at`).

    Raises:
        ValueError: the run is of another training, or has no epoch.

    Example:
        >>> run = train("runs/watched", on_epoch_end=write_live_page,
        ...             model=ModelConfig("lenet"),
        ...             training=TrainConfig(epochs=1), progress=False)
        >>> os.path.exists("runs/watched/live.html")
        True
    """
    history = run.history
    if run.training is None or not history:
        raise ValueError(
            f"{run.directory} expected a run that `train` has trained for an "
            "epoch. Received: one without settings of a training, or without "
            "an epoch."
        )
    epochs = run.training.epochs
    last = history[-1]
    is_running = epoch is not None and epoch < epochs
    seconds = sum(line["seconds"] for line in history) / len(history)
    write_template(
        os.path.join(run.directory, PAGE),
        "live.html",
        title=run.directory.name,
        is_running=is_running,
        state=_state(last, epochs)
        + (_left(seconds * (epochs - epoch)) if is_running else _ENDED),
        curves=curves(history, epochs),
        epochs=epochs,
        width=_WIDTH,
        height=_HEIGHT,
    )


def _state(last: Mapping[str, Any], epochs: int) -> str:
    """How far it is."""
    words = f"Epoch {last['epoch']} of {epochs}, loss {last['loss']:.3f}"
    for subset, count in last.get("sampled", {}).items():
        words += f"; {subset} by a sample of {count:,}"
    return words


def _left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    left = f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"; about {left} to go."


def curves(
    history: Sequence[Mapping[str, Any]], epochs: int
) -> tuple[Curve, ...]:
    """The curves of a history; one for each subset in each behaviour.

    Args:
        history: lines with `epoch`, and `accuracy` where it was measured.
        epochs: of the whole training, the width of the drawing.
    """
    values: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in history:
        for behaviour, accuracy in line.get("accuracy", {}).items():
            for subset, value in accuracy.items():
                values.setdefault((behaviour, subset), []).append(
                    (line["epoch"], value)
                )
    subsets = list(dict.fromkeys(subset for _, subset in values))
    return tuple(
        Curve(
            name=", ".join(filter(None, (subset, WORDS.get(behaviour)))),
            color=color_of(subset, subsets),
            is_dashed=LINES.get(behaviour) == "--",
            points=" ".join(
                f"{_WIDTH * epoch / epochs:.1f},{_HEIGHT * (1 - value):.1f}"
                for epoch, value in line
            ),
            last=f"{line[-1][1]:.1%}",
        )
        for (behaviour, subset), line in values.items()
    )
