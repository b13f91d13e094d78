"""How much each label depends on being seen: memorization by leaving out.

    mem(i) = P[h(x_i) = y_i | i in S] - P[h(x_i) = y_i | i not in S]

over networks h trained on random subsets S of a fixed ratio (Feldman and
Zhang, "What Neural Networks Memorize and Why", 2020, equation 1 and
section 2.1). 1: the label is known only when it was seen; 0: the others teach
it. Each training is an ordinary run with `DataConfig.subset_ratio` below 1, so
that `binaries.sweep` makes them, in as many processes as wanted:

    python -m binaries.sweep --grid=subset_seed=0..19 --over=subset_seed \\
      --base="--dataset=digits --subset_ratio=0.7 --dropout=none" \\
      --run_dir=runs/subsets

`second_split_times` asks the same question in time: how soon is an example
forgotten when the network goes on to learn others (Maini, Garg, Lipton and
Kolter, "Characterizing Datapoints via Second-Split Forgetting", 2022).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import data, evaluation, masks, surgery
from tfmemloc.configs import DataConfig, ModelConfig, TrainConfig
from tfmemloc.data import Examples
from tfmemloc.results import MemorizationEstimates
from tfmemloc.runs import Run
from tfmemloc.training import may_stop, train


def estimate_memorization(
    runs: Sequence[Run],
    examples: Examples | None = None,
    *,
    progress: bool = True,
) -> MemorizationEstimates:
    """Estimates of memorization from runs on random subsets.

    Tied networks are asked with the memorization units of each example on:
    those of an example that was left out were trained by nobody.

    Args:
        runs: finished ones, of one data set, noise and `subset_ratio`, and
            different `subset_seed`s.
        examples: the whole data set; None loads it.
        progress: show a progress bar.

    Returns:
        A row for each training example. NaN where an example was in all of
        the subsets, or in none.

    Raises:
        ValueError: fewer than two runs, one is not finished, or they differ
            in more than the subset.

    Example:
        >>> folders = pathlib.Path("runs/subsets").glob("subset_seed=*")
        >>> runs = [Run.open(folder) for folder in folders]
        >>> estimate_memorization(runs).memorization
    """
    config = _common_data(runs)
    if examples is None:
        examples = data.load(config)
    part = examples.train
    chosen = [
        data.random_subset(
            examples, run.data.subset_ratio, seed=run.data.subset_seed
        )
        for run in runs
    ]
    for run, subset in zip(runs, chosen, strict=True):
        run.check(subset)
        _check_finished(run, subset)
    right = np.zeros((2, len(part)))
    count = np.zeros((2, len(part)), int)
    for run, subset in zip(
        tqdm.tqdm(runs, desc="memorization", unit="run", disable=not progress),
        chosen,
        strict=True,
    ):
        logits = evaluation.predict_logits(_as_trained(run), part)
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


def _as_trained(run: Run) -> keras.Model:
    """The network of a run, each example's own memorization units on."""
    model = run.model()
    if surgery.tied_layers(model):
        return surgery.with_inference(model, "tied")
    return model


def _common_data(runs: Sequence[Run]) -> DataConfig:
    """The config of the whole data set that the runs drew from."""
    configs = {
        dataclasses.replace(
            run.data or DataConfig(), subset_seed=0, data_dir=None
        )
        for run in runs
    }
    seeds = {run.data.subset_seed for run in runs if run.data is not None}
    if len(configs) != 1 or len(seeds) != len(runs) or len(runs) < 2:
        raise ValueError(
            "Expected two or more runs on the same data with the same "
            "subset_ratio, each with a subset_seed of its own. Received: "
            f"{len(runs)} runs with {len(configs)} different data configs and "
            f"{len(seeds)} subset_seeds."
        )
    others = {(run.model_config, run.training) for run in runs}
    if len(others) > 1:
        raise ValueError(
            "Expected runs that differ in the subset alone. Received: "
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
            "all their epochs; the command that made it goes on."
        )


def second_split_times(
    directory: str | os.PathLike,
    examples: Examples,
    *,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """After how many epochs on other examples each one is forgotten for good.

    The training examples are split into halves by (seed, id). A network learns
    the one and then goes on to learn the other; the time of an example of the
    first is the first epoch after which it is never right again. Then the
    halves change places, so that every example has its time.

    Args:
        directory: of the four runs; killed, the same call goes on.
        examples: N training examples and the test ones.
        model: which network; the default is ResNet-9 without dropout.
        training: of both phases.
        seed: of the split.
        progress: show progress bars.

    Returns:
        [N] epochs, in the order of `examples.train`: 0 where the example was
        right neither at the end of the first phase nor after any epoch of the
        second, `epochs + 1` where it was right at the end. Small is
        suspicious.

    Raises:
        ValueError: the directory holds runs with other settings or data.
        DirectoryInUseError: another process trains there.
    """
    model = model or ModelConfig(dropout="none")
    training = dataclasses.replace(training or TrainConfig(), save_every=1)
    part = examples.train
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, "split"), part.example_id, 1
    )
    side = bits[:, 0] & 1
    times = np.zeros(len(part))
    for first in (0, 1):
        folder = pathlib.Path(directory) / f"split_{first}"
        mine, others = (
            examples.trained_on(part.example_id[side == half])
            for half in (first, 1 - first)
        )
        learned = train(
            folder / "first",
            examples=mine,
            model=model,
            training=training,
            progress=progress,
        )
        went_on = train(
            folder / "second",
            examples=others,
            model=model,
            # Times are comparable only where all second phases are as long.
            training=dataclasses.replace(training, stop_at=None),
            start_from=learned,
            progress=progress,
        )
        times[side == first] = _forgotten(went_on, mine.train)
    return times


def _forgotten(run: Run, part: Examples) -> np.ndarray:
    """The first epoch of a run after which each example stays wrong."""
    model = _as_trained(run)
    predict = evaluation.make_predictor(model)
    right = []
    for epoch in run.epochs:
        run.load_weights(model, epoch)
        logits = evaluation.predict_logits(predict, part)
        right.append(logits.argmax(axis=1) == part.label)
    right = np.stack(right)
    # One more than the last epoch after which it was right; 0 if never.
    last = len(right) - right[::-1].argmax(axis=0)
    return np.where(right.any(axis=0), last, 0)
