"""Estimates memorization: how much a label depends on being trained on.

    mem(i) = P[h(x_i) = y_i | i in S] - P[h(x_i) = y_i | i not in S]

over networks h trained on random subsets S of a fixed ratio (Feldman and
Zhang, "What Neural Networks Memorize and Why", 2020, equation 1 and
section 2.1). A value of 1 means that only networks that trained on the example
predict its label; 0 means that the other examples teach it just as well. Each
training is an ordinary run with `DataConfig.subset_ratio` below 1, so that
`binaries.sweep` can make them, in several processes:

    python -m binaries.sweep --grid=subset_seed=0..19 --over=subset_seed \
      --base="--dataset=digits --subset_ratio=0.7 --dropout=none" \
      --run_dir=runs/subsets
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import data, evaluation, graph
from tfmemloc.configs import DataConfig
from tfmemloc.data.examples import Examples
from tfmemloc.result import Result, Table, or_none
from tfmemloc.runs import Run
from tfmemloc.scores.checks import check_classes
from tfmemloc.training.stopping import may_stop


@dataclasses.dataclass(frozen=True, eq=False)
class MemorizationEstimates(Result):
    """How much each label depends on being seen (Feldman and Zhang, 2020)."""

    title: ClassVar[str] = "How much each label depends on being seen"

    example_id: np.ndarray  # [N].
    subset: np.ndarray  # [N] names.
    label: np.ndarray  # [N] that was trained on.
    inside: np.ndarray  # [N] accuracy of networks that saw it; or NaN.
    outside: np.ndarray  # [N] accuracy of networks that did not; or NaN.
    inside_count: np.ndarray  # [N] networks that saw it.
    outside_count: np.ndarray  # [N] networks that did not.

    @property
    def memorization(self) -> np.ndarray:
        """[N] in [-1, 1]: `inside` less `outside`."""
        return self.inside - self.outside

    def rows(self) -> list[dict[str, Any]]:
        """A row for each example, the most memorized first."""
        order = np.argsort(-self.memorization, kind="stable")
        return [
            {
                "example_id": int(self.example_id[n]),
                "subset": str(self.subset[n]),
                "label": int(self.label[n]),
                "memorization": or_none(self.memorization[n]),
                "inside": or_none(self.inside[n]),
                "outside": or_none(self.outside[n]),
                "inside_count": int(self.inside_count[n]),
                "outside_count": int(self.outside_count[n]),
            }
            for n in order
        ]

    def table(self) -> Table:
        """The mean of each subset."""
        known = np.isfinite(self.memorization)
        return Table(
            [
                {
                    "subset": str(name),
                    "examples": int((known & (self.subset == name)).sum()),
                    "memorization": or_none(
                        self.memorization[known & (self.subset == name)].mean()
                        if (known & (self.subset == name)).any()
                        else np.nan
                    ),
                }
                for name in np.unique(self.subset)
            ],
            default=".2f",
        )

    def sentence(self) -> str:
        """How many labels are known only where they were seen."""
        known = np.isfinite(self.memorization)
        if not known.any():
            return "Every example was in all subsets, or in none."
        strong = np.mean(self.memorization[known] >= 0.5)
        return (
            f"Of {known.sum()} examples {strong:.1%} have a memorization of "
            f"one half or more; {(~known).sum()} were in all subsets or in "
            "none, and are not known."
        )


def estimate_memorization(
    runs: Sequence[Run],
    examples: Examples | None = None,
    *,
    progress: bool = True,
) -> MemorizationEstimates:
    """Estimates of memorization from runs on random subsets.

    A tied network predicts each example with the example's own memorization
    units on; an example that was left out has not trained its own.

    Args:
        runs: finished runs with the same data set, noise and `subset_ratio`,
            and different `subset_seed`s.
        examples: the whole data set; None loads it.
        progress: show a progress bar.

    Returns:
        A row for each training example. NaN where an example was in all of
        the subsets, or in none.

    Raises:
        ValueError: fewer than two runs, one is not finished, they differ in
            more than the subset, or labels are next tokens.

    Example:
        >>> folders = sorted(pathlib.Path("runs/subsets").glob("seed*"))
        >>> runs = [Run.open(folder) for folder in folders]
        >>> estimate_memorization(runs).memorization.shape
        (80,)
    """
    config = common_data(runs)
    if examples is None:
        examples = data.load(config)
    part = examples.train
    check_classes(part)
    chosen = [subset_of(run, examples) for run in runs]
    right = np.zeros((2, len(part)))
    count = np.zeros((2, len(part)), int)
    for run, subset in zip(
        tqdm.tqdm(runs, desc="memorization", unit="run", disable=not progress),
        chosen,
        strict=True,
    ):
        logits = evaluation.predict_logits(as_trained(run), part)
        inside = np.isin(part.example_id, subset.train.example_id)
        is_right = logits.argmax(axis=1) == part.label
        for side, where in enumerate((inside, ~inside)):
            right[side, where] += is_right[where]
            count[side] += where
    with np.errstate(invalid="ignore"):
        inside, outside = right / count
    return MemorizationEstimates(
        example_id=part.example_id,
        subset=part.subset,
        label=part.label,
        inside=inside,
        outside=outside,
        inside_count=count[0],
        outside_count=count[1],
    )


def subset_of(run: Run, examples: Examples) -> Examples:
    """What a run on a random subset of these examples was trained on.

    Raises:
        ValueError: it was trained on others, or is not finished.
    """
    subset = data.random_subset(
        examples,
        run.data.subset_ratio,
        seed=run.data.subset_seed,
        complement=run.data.subset_complement,
    )
    run.check(subset)
    _check_finished(run, subset)
    return subset


def as_trained(run: Run) -> keras.Model:
    """The network of a run, each example's own memorization units on."""
    model = run.model()
    if graph.tied_layers(model):
        return graph.with_inference(model, "tied")
    return model


def common_data(runs: Sequence[Run]) -> DataConfig:
    """The config of the whole data set that the runs drew from."""
    configs = {
        dataclasses.replace(
            run.data or DataConfig(),
            subset_seed=0,
            subset_complement=False,
            data_dir=None,
        )
        for run in runs
    }
    seeds = {
        (run.data.subset_seed, run.data.subset_complement)
        for run in runs
        if run.data is not None
    }
    if len(configs) != 1 or len(seeds) != len(runs) or len(runs) < 2:
        raise ValueError(
            "Expected two or more runs on the same data with the same "
            "subset_ratio, each with a subset_seed of its own. Received: "
            f"{len(runs)} runs with {len(configs)} different data configs and "
            f"{len(seeds)} subset_seeds."
        )
    others = {
        tuple(
            settings and dataclasses.replace(settings, seed=0)
            for settings in (run.model_config, run.training)
        )
        for run in runs
    }
    if len(others) > 1:
        raise ValueError(
            "Expected runs that differ in the subset and in seeds alone. "
            "Received: "
            f"{len(others)} different networks or trainings."
        )
    (config,) = configs
    if config.subset_ratio == 1:
        raise ValueError(
            "Expected runs on subsets of the data. Received: subset_ratio=1, "
            "with which no example is ever left out."
        )
    return dataclasses.replace(
        config, subset_ratio=1.0, data_dir=runs[0].data.data_dir
    )


def _check_finished(run: Run, examples: Examples) -> None:
    """Refuses a run whose training has not come to its end."""
    last = max(run.epochs, default=0)
    if run.training is None:  # Not ours: how long it was to be is unknown.
        finished = last > 0
    else:
        history = run.history[:last]
        finished = last == run.training.epochs or (
            last == len(history) and may_stop(run.training, history, examples)
        )
    if not finished:
        raise ValueError(
            f"The run in {run.directory} is not finished. Expected runs with "
            "all their epochs; repeat its command to finish it."
        )
