"""The confidences that a membership audit needs, from runs on random halves.

Each run has `DataConfig.subset_ratio` below 1; runs with the same `subset_seed`
and opposite `subset_complement` are a pair, so that each example is a member of
just one of them. Of each run's network the audit takes what could be released:
the network as it was trained, for a tied one in each behaviour (`tied`, where
the attacker knows the id: an upper bound), and what a removal makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import data, losses, shares, storage
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
    everything = [(name, run) for name, each in runs.items() for run in each]

    def asked(places) -> dict[str, np.ndarray]:
        found = {}
        for place in tqdm.tqdm(
            places, desc="confidences", unit="run", disable=not progress
        ):
            name, run = everything[place]
            own = subset_of(run, examples)
            ids = own.train.example_id
            found[f"{place}/"] = np.isin(everyone.example_id, ids)
            for kind, network in _kinds(name, run, own, made or {}):
                found[f"{place}/{kind}"] = confidences(network, everyone)
        return found

    found = shares.together(
        "confidences",
        lambda: [
            everyone.digest(),
            sorted(made or {}),
            [[name, storage.digest(run.weights())] for name, run in everything],
        ],
        len(everything),
        asked,
    )
    phi: dict[str, list[np.ndarray]] = {}
    member: dict[str, list[np.ndarray]] = {}
    for place in range(len(everything)):
        prefix = f"{place}/"
        for name in found:
            if name.startswith(prefix) and name != prefix:
                kind = name.removeprefix(prefix)
                phi.setdefault(kind, []).append(found[name])
                member.setdefault(kind, []).append(found[prefix])
    return (
        {kind: np.stack(rows) for kind, rows in phi.items()},
        {kind: np.stack(rows) for kind, rows in member.items()},
        everyone,
    )


def _kinds(
    name: str, run: Run, own: Examples, made: Mapping[str, tuple[str, Make]]
) -> Iterator[tuple[str, keras.Model]]:
    """The kinds of networks that a run gives, one after the other."""
    for how, behaving in inference_models(run.model()).items():
        yield network_name(name, how), behaving
    for kind, (of, make) in made.items():
        if of == name:
            yield kind, make(run, own)


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
