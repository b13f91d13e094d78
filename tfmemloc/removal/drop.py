"""The drop: networks before and after the memory is taken out (paper, 5).

The same network is trained four times on the same partly wrong labels:
without dropout, with standard dropout and as a sparse network (both switching
off as many activations as the tied one does), and with example-tied dropout.
Then each is measured on every subset, the tied one in each behaviour.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tfmemloc import evaluation
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import SubsetMetrics
from tfmemloc.fields import check_fields
from tfmemloc.report import figures
from tfmemloc.result import Figure, Result
from tfmemloc.runs import Run
from tfmemloc.snapshots import behaviours
from tfmemloc.subsets import OfSubsets
from tfmemloc.training.loop import train

# Name of the network in tables -> its dropout.
NETWORKS: Mapping[str, str] = {
    "standard": "none",
    "standard_dropout": "standard",
    "sparse": "sparse",
    "example_tied": "example_tied",
}


def train_networks(
    directory: str | os.PathLike,
    examples: Examples,
    *,
    data: DataConfig,
    model: ModelConfig,
    training: TrainConfig,
    strategy: tf.distribute.Strategy | None = None,
    tensorboard: bool = False,
    progress: bool = True,
    on_epoch_end: Callable[[Run, int], None] | None = None,
) -> dict[str, Run]:
    """Trains the four networks, each in its own folder of `directory`.

    Finished ones are reused, killed ones resumed.

    Args:
        directory: of the runs `standard`, `standard_dropout`, `sparse` and
            `example_tied`.
        examples: the data of `data`, loaded.
        data: where they came from.
        model: which network; its `dropout` is ignored.
        training: how to train each of them.
        strategy: see `train`.
        tensorboard: see `train`.
        progress: show a progress bar for each network.
        on_epoch_end: see `train`.

    Example:
        >>> data = DataConfig(train_examples=40, test_examples=20)
        >>> runs = train_networks(
        ...     "runs/four",
        ...     load(data),
        ...     data=data,
        ...     model=ModelConfig("lenet"),
        ...     training=TrainConfig(epochs=1, batch_size=20),
        ...     progress=False,
        ... )
        >>> list(runs)
        ['standard', 'standard_dropout', 'sparse', 'example_tied']
    """
    return {
        name: train(
            pathlib.Path(directory) / name,
            data=data,
            examples=examples,
            model=dataclasses.replace(model, dropout=dropout),
            training=training,
            strategy=strategy,
            tensorboard=tensorboard,
            progress=progress,
            on_epoch_end=on_epoch_end,
        )
        for name, dropout in NETWORKS.items()
    }


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """What is measured of each network.

    Attributes:
        recalibrate: also measure the tied network in drop mode after its
            BatchNorm statistics were recomputed with the memorization units
            off; the behaviour `drop_recalibrated`.
    """

    recalibrate: bool = False

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True, eq=False)
class NetworkComparison(OfSubsets, Result):
    """Networks with different dropout, before and after the drop (paper, 5).

    A row is a network in one behaviour: `plain` where it has no tied layer,
    else `tied` (memorization units on), `expected` or `drop` (off).
    """

    title: ClassVar[str] = (
        "What the network memorized, and what is left after the drop"
    )

    dataset: str
    models: tuple[str, ...]  # R rows: which network.
    inferences: tuple[str, ...]  # R rows: in which behaviour.
    subsets: tuple[str, ...]  # S names.
    count: np.ndarray  # [S] examples.
    accuracy: np.ndarray  # [R, S] in [0, 1], of the labels trained on.
    true_accuracy: np.ndarray  # [R, S] in [0, 1], of the true labels.
    loss: np.ndarray  # [R, S] mean cross-entropy in nats.

    def rows(self) -> list[dict[str, Any]]:
        """A row for each network and behaviour: accuracy by subset.

        `noisy_true_label` is the accuracy on the noisy examples against the
        labels that they had before they were made wrong.
        """
        return [self._row(r) for r in range(len(self.models))]

    def _row(self, r: int) -> dict[str, Any]:
        row: dict[str, Any] = {
            "model": self.models[r],
            "inference": self.inferences[r],
        }
        for s, subset in enumerate(self.subsets):
            row[subset] = float(self.accuracy[r, s])
            if subset == "noisy":
                row["noisy_true_label"] = float(self.true_accuracy[r, s])
        return row

    def row(self, model: str, inference: str) -> dict[str, Any]:
        """The row of one network in one behaviour."""
        pairs = list(zip(self.models, self.inferences, strict=True))
        return self._row(pairs.index((model, inference)))

    def sentence(self) -> str:
        """What was memorized, and what is left of it."""
        pairs = set(zip(self.models, self.inferences, strict=True))
        if not {("example_tied", "tied"), ("example_tied", "drop")} <= pairs:
            return (
                f"Networks measured: {', '.join(dict.fromkeys(self.models))}."
            )
        tied = self.row("example_tied", "tied")
        drop = self.row("example_tied", "drop")
        standard = (
            self.row("standard", "plain")
            if ("standard", "plain") in pairs
            else {}
        )
        tests = _test_in_words(drop, standard)
        memorized = self.memorized
        if memorized is None:
            return f"No label is known to be wrong. {tests}".rstrip()
        text = (
            "With its memorization units on, the example-tied network gets "
            f"{tied[memorized]:.1%} of the {memorized} training examples right "
            f"as they are labelled; with them off, {drop[memorized]:.1%}"
        )
        if memorized == "noisy":
            text += (
                f", and it gives {drop['noisy_true_label']:.1%} of them their "
                "true label"
            )
        return f"{text}. {tests}".rstrip()

    def figures(self) -> dict[str, Figure]:
        """Bars, by network and behaviour."""
        return {
            "accuracy": Figure(
                "Accuracy of each subset at the end of training.",
                _accuracy_bars(self),
            )
        }

    def key_numbers(self) -> dict[str, float]:
        """Every accuracy."""
        return {
            f"{row['model']}, {row['inference']}: {name}".replace(
                "_", " "
            ): value
            for row in self.rows()
            for name, value in row.items()
            if isinstance(value, float)
        }


def _test_in_words(drop, standard) -> str:
    if "test" not in drop:
        return ""
    text = f"Test accuracy is {drop['test']:.1%} after the drop"
    if standard:
        text += f"; the standard network's is {standard['test']:.1%}"
    return f"{text}."


def _accuracy_bars(result: NetworkComparison):
    """Accuracy of each subset, by network and behaviour, as bars."""
    labels = [
        "\n".join(
            filter(None, (model.replace("_", "\n"), figures.WORDS[inference]))
        )
        for model, inference in zip(
            result.models, result.inferences, strict=True
        )
    ]
    return figures.accuracy_bars(labels, result.accuracy, result.subsets)


def compare_networks(
    runs: Mapping[str, Run],
    examples: Examples,
    config: ComparisonConfig = ComparisonConfig(),
) -> NetworkComparison:
    """Measures each network on every subset, in every behaviour.

    Args:
        runs: name of the network -> its run.
        examples: the data that the runs were made with.
        config: what is measured.

    Raises:
        ValueError: the data are not those of a run.

    Example:
        >>> runs = {"standard": Run.open("runs/demo/standard"),
        ...         "example_tied": Run.open("runs/demo/example_tied")}
        >>> comparison = compare_networks(runs, examples)
        >>> sorted(comparison.row("example_tied", "drop"))[:2]
        ['clean', 'inference']
    """
    measured: dict[tuple[str, str], SubsetMetrics] = {}
    for (name, inference), model in behaviours(runs, examples):
        measured[name, inference] = evaluation.evaluate(model, examples)
        if inference == "drop" and config.recalibrate:
            recalibrated = evaluation.recalibrate_batch_norm(
                model, examples.train
            )
            measured[name, "drop_recalibrated"] = evaluation.evaluate(
                recalibrated, examples
            )
    first = next(iter(measured.values()))
    return NetworkComparison(
        dataset=examples.name,
        models=tuple(name for name, _ in measured),
        inferences=tuple(inference for _, inference in measured),
        subsets=first.subsets,
        count=first.count,
        **{
            field: np.stack([getattr(m, field) for m in measured.values()])
            for field in ("accuracy", "true_accuracy", "loss")
        },
    )
