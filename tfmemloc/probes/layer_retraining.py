"""Layer retraining: do the other layers hold the memory?

Claim (paper, section 4.3): a group is set back to initialization, everything
else is frozen, and the group learns again from the *clean* examples only. If
the accuracy on the noisy examples, which it never saw, comes back, then their
wrong labels are held by the other layers. For most groups it does.

Frozen means frozen: weights, momentum, weight decay and normalization
statistics of the other groups stay as they are, byte for byte. The group's own
BatchNorm is in training mode while it learns; dropout is as in training. (The
authors' code inverts the mask twice, so that it trains on the noisy examples,
and freezes nothing.)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from tqdm import auto as tqdm

from tfmemloc import configs, evaluation, graph, storage, subsets
from tfmemloc.checks import check_range
from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.fields import check_fields
from tfmemloc.probes.group_learner import GroupLearner
from tfmemloc.probes.layer_rewinding import position
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result, Table
from tfmemloc.snapshots import Source, as_source
from tfmemloc.subsets import OfSubsets


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
    """How a group is retrained; the schedule is the authors' triangle.

    Attributes:
        groups: names of the groups to retrain; None takes all.
        train_on: the subset that a group is trained on; None is clean (or
            typical). `noisy` asks the opposite question.
        reset_to: the saved epoch that a group is set back to.
        epochs: maximum number of epochs for each group.
        learning_rate: peak of the triangle schedule.
        batch_size: examples in a step; None is the run's.
        stop_at: stop when the accuracy on the subset that is trained on has
            been at least this for `patience` epochs; None never stops early.
        patience: see `stop_at`.
        inference: behaviour of tied layers where accuracy is measured; None
            leaves it as built (drop).
        memory_budget_mib: MiB of activations in front of the group that are
            kept, not computed anew in each epoch.
    """

    groups: tuple[str, ...] | None = None
    train_on: str | None = None
    reset_to: int = 0
    epochs: int = 20
    learning_rate: float = 0.01
    batch_size: int | None = None
    stop_at: float | None = 1.0
    patience: int = 3
    inference: configs.Inference | None = None
    memory_budget_mib: int = 1024

    def __post_init__(self):
        check_fields(self)
        check_range("reset_to", self.reset_to, 0, None)
        check_range("memory_budget_mib", self.memory_budget_mib, 0, None)
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), 1, None)
        check_range("learning_rate", self.learning_rate, 0.0, None)
        if self.stop_at is not None:
            check_range("stop_at", self.stop_at, 0.0, 1.0)

    def training(self, batch_size: int) -> TrainConfig:
        """The training of each group."""
        return TrainConfig(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            schedule="triangle",
            stop_at=self.stop_at,
            patience=self.patience,
            batch_size=self.batch_size or batch_size,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LayerRetraining(OfSubsets, Result):
    """Accuracy while one group learns anew from one subset (paper, 4.3)."""

    title: ClassVar[str] = "Which layers hold the memory of the others"

    groups: tuple[str, ...]  # G names, input to output.
    subsets: tuple[str, ...]  # S names.
    trained_on: str  # The only subset that the group saw.
    reset_to: int  # The epoch that the group was set back to.
    # [G, E + 1, S] in [0, 1] after 0, 1, ... epochs; NaN after the stop.
    accuracy: np.ndarray
    epochs: np.ndarray  # [G] epochs that were trained.
    baseline: np.ndarray  # [S] accuracy of the trained model, unchanged.

    @property
    def final(self) -> np.ndarray:
        """[G, S] accuracy after the last epoch of each group."""
        return self.accuracy[np.arange(len(self.groups)), self.epochs]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each group, epoch and subset."""
        return [
            {
                "group": group,
                "epoch": epoch,
                "subset": subset,
                "accuracy": float(self.accuracy[g, epoch, s]),
                "baseline": float(self.baseline[s]),
            }
            for g, group in enumerate(self.groups)
            for epoch in range(int(self.epochs[g]) + 1)
            for s, subset in enumerate(self.subsets)
        ]

    def table(self) -> Table:
        """A row for each group: accuracies after the reset, and at the end."""
        return Table(
            [
                {
                    "group": group,
                    "epochs": int(self.epochs[g]),
                    **{
                        f"{subset}_reset": float(self.accuracy[g, 0, s])
                        for s, subset in enumerate(self.subsets)
                    },
                    **{
                        subset: float(self.final[g, s])
                        for s, subset in enumerate(self.subsets)
                    },
                }
                for g, group in enumerate(self.groups)
            ]
        )

    def sentence(self) -> str:
        """How many groups can be retrained, and which one matters most."""
        group = self.most_sensitive()
        return (
            f"Reset to epoch {self.reset_to} and trained on the "
            f"{self.trained_on} examples alone, {self.robust_share():.0%} of "
            f"the {len(self.groups)} groups leave the accuracy on the "
            f"{self.focus} examples at 90% or more: the memory of these is in "
            f"the other groups. The most sensitive is {group}, "
            f"{position(group, self.groups)}."
        )

    def figures(self) -> dict[str, Figure]:
        """A curve for each subset, a panel for each group."""
        return {
            "layer_retraining": Figure(
                "Accuracy while one layer group learns anew, all others "
                "frozen.",
                _curves(self),
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """The share of groups that can be retrained."""
        return {"groups that can be retrained": self.robust_share()}

    def robust_share(self, at_least: float = 0.9) -> float:
        """Share of groups whose retraining leaves the memory at `at_least`."""
        s = self.subsets.index(self.focus)
        return float(np.mean(self.final[:, s] >= at_least))

    def most_sensitive(self) -> str:
        """The group whose retraining costs the memorized examples the most."""
        s = self.subsets.index(self.focus)
        return self.groups[int(np.argmin(self.final[:, s]))]


def _curves(result: LayerRetraining):
    figure, panels = figures.panels(result.groups)
    for g, panel in enumerate(panels):
        for s, subset in enumerate(result.subsets):
            panel.plot(
                100 * result.accuracy[g, :, s],
                ".-",
                color=figures.color_of(subset, result.subsets),
                label=subset,
            )
        panel.set_ylim(-3, 103)
    figure.axes[0].legend(fontsize=7, loc="lower right")
    figure.supxlabel(f"epochs on {result.trained_on} examples", fontsize=9)
    figure.supylabel("accuracy (%)", fontsize=9)
    return figure


def retrain_layers(
    source: Source,
    examples: Examples,
    config: RetrainConfig = RetrainConfig(),
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    directory: str | os.PathLike | None = None,
    progress: bool = True,
) -> LayerRetraining:
    """Retrains each layer group of a network on one subset.

    Args:
        source: a run whose model can be rebuilt, or `Snapshots` of any model
            with the epoch that groups are reset to; it is not changed.
        examples: the data of the run.
        config: what is trained, and how.
        groups: names of groups -> names of layers; None is `layer_groups`.
        directory: where finished groups are kept; called again, they are not
            retrained. None keeps nothing.
        progress: show a progress bar.

    Returns:
        Arrays with axes [groups, epochs, subsets].

    Raises:
        ValueError: a group, an epoch or a subset does not exist, the data are
            not the run's, or `directory` holds results of other settings.

    Example:
        >>> run = Run.open("runs/demo/standard")
        >>> result = retrain_layers(
        ...     run, run.examples(), RetrainConfig(groups=("conv1",), epochs=1)
        ... )
        >>> result.groups
        ('conv1',)
    """
    source = as_source(source)
    source.check(examples)
    source.check_epochs([config.reset_to])
    train_on = config.train_on or _default_subset(examples)
    examples.of_subset(train_on)
    model = source.model(inference=config.inference)
    named = graph.layer_groups(model, groups)
    names = _chosen(named, config.groups)
    training = config.training(
        source.training.batch_size if source.training else 512
    )
    reset = source.weights(config.reset_to)
    parts = storage.Parts(
        directory,
        {
            "training": configs.to_json(training),
            "train_on": train_on,
            "reset_to": config.reset_to,
            "inference": config.inference,
            "fingerprint": source.fingerprint or examples.fingerprint(),
            "weights": storage.digest(model.get_weights()),
            "reset": storage.digest(reset),
            "groups": {
                name: [layer.name for layer in layers]
                for name, layers in named.items()
            },
        },
        "retraining",
    )
    budget = config.memory_budget_mib * 2**20
    curves = []
    with tqdm.tqdm(
        names, desc="retraining", unit="group", disable=not progress
    ) as bar:
        for name in bar:
            bar.set_postfix_str(name)
            part = parts.read(name)
            if part is None:
                learner = GroupLearner(model, named[name], reset, budget)
                part = {"accuracy": learner.learn(examples, training, train_on)}
                parts.write(name, part)
            curves.append(part["accuracy"])
    shape = (len(names), training.epochs + 1, len(examples.subsets))
    accuracy = np.full(shape, np.nan)
    for g, curve in enumerate(curves):
        accuracy[g, : len(curve)] = curve
    return LayerRetraining(
        groups=tuple(names),
        subsets=examples.subsets,
        trained_on=train_on,
        reset_to=config.reset_to,
        accuracy=accuracy,
        epochs=np.array([len(curve) - 1 for curve in curves]),
        baseline=evaluation.evaluate(model, examples).accuracy,
    )


def _default_subset(examples: Examples) -> str:
    """Clean or typical, or else the first training subset not memorized."""
    names = [
        name
        for name in subsets.training(examples.subsets)
        if name not in subsets.MEMORIZED
    ]
    if not names:
        raise ValueError(
            f"{examples.name} has no subset of rightly labelled training "
            "examples. Expected `train_on`, the subset to train on. Received: "
            f"the subsets {', '.join(examples.subsets)}."
        )
    return examples.ordinary or names[0]


def _chosen(named: graph.Groups, only: Sequence[str] | None) -> list[str]:
    """Names of the groups to retrain."""
    names = list(named) if only is None else list(only)
    unknown = [name for name in names if name not in named]
    if unknown:
        raise ValueError(
            f"There is no group {', '.join(map(repr, unknown))}. Expected "
            f"some of: {', '.join(named)}."
        )
    return [
        name
        for name in names
        if any(layer.trainable_variables for layer in named[name])
    ]
