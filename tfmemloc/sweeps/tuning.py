"""Search of settings for two goals: little memory, and much that generalizes.

No setting is best in both: what forgets more often knows less. So the answer is
a front: the settings of which no other is at least as good in both goals and
better in one. The settings of each trial come from Optuna, whose journal lies
in the folder beside the cells; a search that was killed goes on with the trials
that it had begun.

    <directory>/journal.log      what Optuna was told
    <directory>/<settings>/      a trial: a cell of a sweep
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tfmemloc import presets
from tfmemloc.configs import is_own
from tfmemloc.layers import masks
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.sweeps.grid import Cell
from tfmemloc.sweeps.run import SweepError, is_done, run_sweep

# Rounds in which all trials fail before a search ends.
_PATIENCE = 3

_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+)(?:e-?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Axis:
    """What may be chosen for one flag.

    Attributes:
        flag: its name.
        choices: its values, as text; or none, and it is between two numbers.
        low: the least number.
        high: the largest.
        log: numbers are drawn on a logarithmic scale.
    """

    flag: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    def distribution(self) -> Any:
        """As Optuna draws from it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        return distributions.FloatDistribution(
            self.low, self.high, log=self.log
        )

    def text(self, value: str | float) -> str:
        """What was drawn, as the value of the flag."""
        return str(value) if self.choices else f"{value:.4g}"


def parse_space(axes: Sequence[str]) -> list[Axis]:
    """The axes of a search.

    Args:
        axes: such as `expand=0.5,1` (choices), `memory_off=0.1..0.9` (a number
            between them), `p_mem=0.02..0.3:log` (on a logarithmic scale).

    Raises:
        ValueError: an axis is not of this form, or a flag has two.

    Example:
        >>> parse_space(["p_mem=0.02..0.3:log"])[0].high
        0.3
    """
    found: dict[str, Axis] = {}
    for axis in axes:
        flag, _, text = axis.partition("=")
        range_ = _RANGE.fullmatch(text)
        choices = tuple(text.split(",")) if not range_ else ()
        made = Axis(flag, choices)
        if range_:
            low, high = float(range_[1]), float(range_[2])
            made = Axis(flag, (), low, high, bool(range_[3]))
        is_good = (
            _NAME.fullmatch(flag)
            and flag not in found
            and (made.low < made.high if range_ else all(choices))
            and not (made.log and made.low <= 0)
        )
        if not is_good:
            raise ValueError(
                "An axis of the search expected a flag, each once, and its "
                "choices or limits: expand=0.5,1 or p_mem=0.02..0.3:log. "
                f"Received: {axis!r}."
            )
        found[flag] = made
    if not found:
        raise ValueError("Expected at least one axis, such as p_mem=0.05..0.3.")
    return list(found.values())


@dataclasses.dataclass(frozen=True, eq=False)
class TuningResults(Result):
    """Trials of settings, and the front of those that none surpasses."""

    title: ClassVar[str] = "Settings that forget much and know much"

    flags: tuple[str, ...]  # F that were searched.
    settings: np.ndarray  # [R, F] strings.
    forget: str  # The number that is wanted small.
    keep: str  # The number that is wanted large.
    forgotten: np.ndarray  # [R] in [0, 1].
    kept: np.ndarray  # [R] in [0, 1].

    @property
    def front(self) -> np.ndarray:
        """Whether no other trial surpasses it: bool [R]."""
        as_good = (self.forgotten[:, np.newaxis] >= self.forgotten) & (
            self.kept[:, np.newaxis] <= self.kept
        )
        better = (self.forgotten[:, np.newaxis] > self.forgotten) | (
            self.kept[:, np.newaxis] < self.kept
        )
        return ~(as_good & better).any(axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each trial, in the order of the number to forget."""
        return [
            {
                **dict(
                    zip(self.flags, map(str, self.settings[r]), strict=True)
                ),
                self.forget: float(self.forgotten[r]),
                self.keep: float(self.kept[r]),
                "front": bool(self.front[r]),
            }
            for r in np.argsort(self.forgotten, kind="stable")
        ]

    def table(self) -> Table:
        """The trials of the front."""
        return Table(
            [
                {name: row[name] for name in row if name != "front"}
                for row in self.rows()
                if row["front"]
            ]
        )

    def sentence(self) -> str:
        """How far the front reaches, each end with what it costs."""
        least = self.table().rows[0]
        most = self.table().rows[-1]
        forget, keep = (
            name.replace("_", " ") for name in (self.forget, self.keep)
        )
        return (
            f"{len(self.forgotten)} trials, {int(self.front.sum())} of them on "
            f"the front, which goes from {least[self.forget]:.1%} {forget} at "
            f"{least[self.keep]:.1%} {keep} to {most[self.forget]:.1%} at "
            f"{most[self.keep]:.1%}. The numbers of the front are chosen, and "
            "so too good: measure the setting that you take on another seed."
        )

    def figures(self) -> dict[str, Figure]:
        """Every trial, and the front as a line."""
        return {
            "front": Figure(
                "Trials by the two goals; the line joins those that no other "
                "surpasses. The best corner is at the top left.",
                _front_drawing(self),
            )
        }


def _front_drawing(result: TuningResults):
    figure = figures.Drawing(figsize=(4.8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(
        100 * result.forgotten,
        100 * result.kept,
        color=figures.SERIES[0],
        label="trials",
    )
    order = np.argsort(result.forgotten, kind="stable")
    front = order[result.front[order]]
    axes.plot(
        100 * result.forgotten[front],
        100 * result.kept[front],
        color=figures.SERIES[1],
        marker=figures.MARKERS[1],
        label="front",
    )
    axes.set_xlabel(f"{result.forget.replace('_', ' ')} accuracy (%)")
    axes.set_ylabel(f"{result.keep.replace('_', ' ')} accuracy (%)")
    axes.legend(fontsize=8)
    figures.plain_axes(axes)
    return figure


def tune_settings(
    directory: str | os.PathLike,
    program: str,
    space: Sequence[Axis],
    *,
    trials: int,
    base: Sequence[str] = (),
    forget: str = "drop_noisy",
    keep: str = "drop_heldout",
    seed: int = 0,
    processes: int = 1,
    **options: Any,
) -> TuningResults:
    """Searches settings until there are so many finished trials.

    Args:
        directory: of the search.
        program: `train` or `localize`.
        space: from `parse_space`.
        trials: how many there are to be in the end; more may be asked later.
        base: flags that all trials share.
        forget: the number of a cell that is wanted small.
        keep: the number that is wanted large. Not of the test set: a setting
            that was chosen by it would look better than it is.
        seed: of Optuna's sampler.
        processes: trials that run at once. With several, each knows less of
            the others when it is chosen. Their number decides, beside the
            seed, which settings are tried; a kill does not.
        **options: as of `run_sweep`.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: a cell has no such number, or the directory holds a search
            with other settings.
        SweepError: the first trials failed, or all of three rounds. A single
            setting that cannot be trained is left out, and others are tried.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ModuleNotFoundError(
            "A search of settings needs Optuna, which is not installed. Run: "
            "pip install 'tfmemloc[sweep]'"
        )
    _check_goals((forget, keep), base, space)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    study, lost = _study(directory, space), 0
    while (missing := trials - len(finished := _finished(study))) > 0:
        asked = _asked(study, space, min(processes, missing), seed)
        run = functools.partial(
            run_sweep,
            directory,
            program,
            base=base,
            processes=processes,
            **options,
        )
        failure = _run(study, space, asked, run, directory, (forget, keep))
        lost = 0 if failure is None else lost + 1
        if failure is not None and (not finished or lost == _PATIENCE):
            raise failure
    return TuningResults(
        flags=tuple(axis.flag for axis in space),
        settings=np.array(
            [
                [value for _, value in _cell(space, trial).values]
                for trial in finished
            ]
        ),
        forget=forget,
        keep=keep,
        forgotten=np.array([trial.values[0] for trial in finished]),
        kept=np.array([trial.values[1] for trial in finished]),
    )


def _check_goals(
    names: Sequence[str], base: Sequence[str], space: Sequence[Axis]
) -> None:
    """Refuses to ask for held-out examples where none are kept aside."""
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in base)
    dataset = given.get("dataset", "digits")
    usual = presets.data_settings(dataset).get("heldout", 0)
    keeps = float(given.get("heldout", usual)) > 0 or any(
        axis.flag == "heldout" for axis in space
    )
    # A file of flags, or of data of one's own, may have them.
    may_keep = keeps or "flagfile" in given or is_own(dataset)
    asked = [name for name in names if name.endswith("_heldout")]
    if asked and not may_keep:
        raise ValueError(
            f"The trials would have no number {', '.join(asked)}: no examples "
            "are held out. Expected --heldout=0.1 in the common flags (--base="
            '"--heldout=0.1 ...").'
        )


def _study(directory: pathlib.Path, space: Sequence[Axis]):
    """Optuna's study in a folder, as far as it got."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.journal.JournalFileBackend(
        str(directory / "journal.log")
    )
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(journal),
        study_name="tfmemloc",
        load_if_exists=True,
        directions=["minimize", "maximize"],
    )
    known = study.user_attrs.get("space")
    mine = [repr(axis) for axis in space]
    if known is None:
        study.set_user_attr("space", mine)
    elif known != mine:
        raise ValueError(
            f"{directory} holds a search of other settings: {known} there, "
            f"{mine} here. Use the original ones, or another --run_dir."
        )
    return study


def _finished(study) -> list:
    import optuna

    return study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))


def _run(
    study, space: Sequence[Axis], asked, run, directory, names
) -> SweepError | None:
    """Runs trials and tells the study of them; the error if all failed."""
    import optuna

    cells = [_cell(space, trial) for trial in asked]
    done, failure = list(dict.fromkeys(cells)), None
    try:
        results = run(done)
    except SweepError as error:
        # A setting that cannot be trained is an answer, too.
        done, failure = [c for c in done if is_done(directory, c)], error
        results = run(done) if done else None
    for trial, cell in zip(asked, cells, strict=True):
        if cell in done:
            study.tell(trial.number, _values(results, cell, names))
        else:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return None if done else failure


def _asked(study, space: Sequence[Axis], count: int, seed: int) -> list:
    """Trials to run: first those that a killed search had asked for."""
    import optuna

    distributions = {axis.flag: axis.distribution() for axis in space}
    begun = [
        trial
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        # A search that was killed while it asked knows not all of them.
        if trial.params.keys() == distributions.keys()
    ][:count]
    new = []
    for _ in range(count - len(begun)):
        # The draws of a trial are its number's, whenever a search goes on.
        number = masks.fold_seed(seed, "trials", len(study.trials))
        study.sampler = optuna.samplers.TPESampler(seed=number % 2**32)
        new.append(study.ask(distributions))
    return begun + new


def _cell(space: Sequence[Axis], trial) -> Cell:
    """The cell of a trial."""
    return Cell(
        tuple((axis.flag, axis.text(trial.params[axis.flag])) for axis in space)
    )


def _values(results, cell: Cell, names: Sequence[str]) -> list[float]:
    """Two numbers of a finished cell."""
    missing = [name for name in names if name not in results.names]
    if missing:
        raise ValueError(
            f"The trials have no number {', '.join(missing)}. Expected some of "
            f"{', '.join(results.names)}. A held-out part comes of "
            "--base=--heldout=0.1."
        )
    wanted = [value for _, value in cell.values]
    (row,) = [
        r
        for r, setting in enumerate(results.settings)
        if list(map(str, setting)) == wanted
    ]
    return [
        float(results.values[row, results.names.index(name)]) for name in names
    ]
