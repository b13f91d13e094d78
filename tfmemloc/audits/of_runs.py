"""The confidences that a membership audit needs, from runs on random halves.

Each run has `DataConfig.subset_ratio` below 1; runs with the same `subset_seed`
and opposite `subset_complement` are a pair, so that each example is a member of
just one of them. Of each run's network the audit takes what could be released:
the network as it was trained, for a tied one in each behaviour (`tied`, where
the attacker knows the id: an upper bound), and what a removal makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import data, losses
from tfmemloc.data.examples import Examples
from tfmemloc.evaluation import inference_models, predict_logits
from tfmemloc.runs import Run
from tfmemloc.scores.memorization import common_data, subset_of

# Name of a kind of network -> how it is made of a run and its examples.
Make = Callable[[Run, Examples], keras.Model]
_WORDS = {"plain": "", "drop": "dropped"}
# Probabilities closer to 0 or 1 have no logit to speak of.
_LIMIT = 35.0


def confidences_of_runs(
    runs: Mapping[str, Sequence[Run]],
    examples: Examples | None = None,
    *,
    made: Mapping[str, tuple[str, Make]] | None = None,
    progress: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Examples]:
    """phi of the given label, of every kind of network that the runs give.

    Args:
        runs: name of a network (such as `standard`) -> its runs on random
            subsets of the same data.
        examples: the whole data set; None loads it.
        made: name of a further kind -> (whose runs, (run, its examples) -> a
            model): a removal, for instance.
        progress: show a progress bar.

    Returns:
        Name of a kind -> phi [M, N]; name -> member bool [M, N]; the N
        training examples.

    Raises:
        ValueError: fewer than two runs, one is not finished, or they differ in
            more than the subset.

    Example:
        >>> folders = sorted(pathlib.Path("runs/subsets").glob("seed*"))
        >>> runs = {"mine": [Run.open(folder) for folder in folders]}
        >>> phi, member, everyone = confidences_of_runs(runs)
        >>> phi["mine dropped"].shape == member["mine dropped"].shape
        True
    """
    configs = [common_data(each) for each in runs.values()]
    if examples is None:
        examples = data.load(configs[0])
    everyone = examples.train
    phi: dict[str, list[np.ndarray]] = {}
    member: dict[str, list[np.ndarray]] = {}
    everything = [(name, run) for name, each in runs.items() for run in each]
    for name, run in tqdm.tqdm(
        everything, desc="confidences", unit="run", disable=not progress
    ):
        own = subset_of(run, examples)
        inside = np.isin(everyone.example_id, own.train.example_id)
        model = run.model()
        networks = {
            network_name(name, how): behaving
            for how, behaving in inference_models(model).items()
        }
        for kind, (of, make) in (made or {}).items():
            if of == name:
                networks[kind] = make(run, own)
        for kind, network in networks.items():
            phi.setdefault(kind, []).append(confidences(network, everyone))
            member.setdefault(kind, []).append(inside)
    return (
        {kind: np.stack(rows) for kind, rows in phi.items()},
        {kind: np.stack(rows) for kind, rows in member.items()},
        everyone,
    )


def confidences(model: keras.Model, examples: Examples) -> np.ndarray:
    """phi = log(p / (1 - p)) of each example's given label: float64 [N].

    Of next tokens p is that of a token, by the mean over positions.
    """
    return phi_of(examples.label, predict_logits(model, examples))


def phi_of(label: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """`confidences` of logits that are at hand: float64 [N]."""
    if label.ndim == 1:
        # 1 - p is the sum of the others, which does not cancel.
        place = label[:, np.newaxis]
        others = logits.astype(np.float64)
        np.put_along_axis(others, place, -np.inf, axis=1)
        own = np.take_along_axis(logits, place, axis=1)[:, 0]
        phi = own - np.logaddexp.reduce(others, axis=1)
    else:
        loss = losses.measured_losses(label, logits)
        phi = -loss - np.log(-np.expm1(-np.maximum(loss, 1e-12)))
    return np.clip(phi, -_LIMIT, _LIMIT)


def network_name(name: str, inference: str) -> str:
    """What a network in one behaviour is called: `tied dropped`, for one."""
    return f"{name} {_WORDS.get(inference, inference)}".rstrip()
