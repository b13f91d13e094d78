"""The main job: train, tie, drop, and show what went (paper, section 5).

The same network is trained four times on the same partly wrong labels:
without dropout, with standard dropout and as a sparse network (both switching
off as many activations as the tied one does), and with example-tied dropout.
Then each is measured on every subset, the tied one in each behaviour.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmemloc import evaluation
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data import Examples
from tfmemloc.results import Localization, SubsetMetrics
from tfmemloc.runs import Run
from tfmemloc.training import train

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
        )
        for name, dropout in NETWORKS.items()
    }


def localize(
    runs: Mapping[str, Run],
    examples: Examples,
    *,
    recalibrate: bool = False,
) -> Localization:
    """Measures each network on every subset, in every behaviour.

    Args:
        runs: name of the network -> its run.
        examples: the data that the runs were made with.
        recalibrate: also measure the tied network in drop mode after its
            BatchNorm statistics were recomputed with the memorization units
            off; the behaviour `drop_recalibrated`.
    """
    measured: dict[tuple[str, str], SubsetMetrics] = {}
    for name, run in runs.items():
        run.check(examples)
        for inference, model in evaluation.inference_models(
            run.model()
        ).items():
            measured[name, inference] = evaluation.evaluate(model, examples)
            if inference == "drop" and recalibrate:
                recalibrated = evaluation.recalibrate_batch_norm(
                    model, examples.train
                )
                measured[name, "drop_recalibrated"] = evaluation.evaluate(
                    recalibrated, examples
                )
    first = next(iter(measured.values()))
    return Localization(
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
