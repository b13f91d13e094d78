"""Which examples are memorized, and which labels are wrong?

A network trained with tied dropout says two things of each of its examples:
what it makes of it with the example's own memorization units on, and with
them off. Where only those units know the given label,

    tied gap  =  log p(label | own units on)  -  log p(label | off)

is large: the label was learned by heart, and the dropped network's answer is
a better one. Beside it stand scores that the field knows, all of the same
training, each oriented so that more is more suspicious:

- `dropped_margin`: the best other log-probability less that of the label,
  memorization units off; above 0 the dropped network disagrees;
- `disagreement`: 1 - p(label | off), mean over saved epochs;
- `loss`: cross-entropy of the label at the end, as trained;
- `aum`: minus the area under the margin, the mean over epochs of the label's
  logit less the best other one (Pleiss et al., 2020);
- `forgetting`: how often an example went from right to wrong between epochs;
  one that was never right gets the number of epochs (Toneva et al., 2019);
- `first_learned`: how many epochs went by before it was first right; all of
  them if never (ibid.);
- `el2n`: || softmax - one-hot || in an early epoch (Paul et al., 2021);
- `grand`: norm of the loss gradient at an early epoch (ibid.);
- `tracin`: self-influence, the sum over saved epochs of the learning rate
  (1 where the history has none) times the squared gradient norm (Pruthi et
  al., 2020).

`aum` to `el2n` come from what the training steps recorded (`recording.py`).
Scores that take trainings of their own, `second_split_times` and
`estimate_memorization`, are in `memorization.py`.

A class with many wrong labels is learned badly by the generalization units,
too: the dropped network gives it too little everywhere. The combined ranking,
the suggestion and the suspicion therefore divide its mean share of the
probability out (logit adjustment; Menon et al., 2021), and a temperature,
fitted to the test examples, makes the suspicion a calibrated one (Guo et al.,
2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import auto as tqdm

from tfmemloc import evaluation, gradients, surgery
from tfmemloc.data import Examples
from tfmemloc.recording import Recording, recorded_epochs
from tfmemloc.results import CriticalUnits, ExampleScores, bootstrap_interval
from tfmemloc.runs import Run

# What `evaluate_scores` says of each score.
MEASURES = ("auroc", "average_precision", "precision_at_n")
_RESAMPLES = 200
# The early epoch of EL2N and GraNd, as a fraction of the training.
_EARLY = 0.1
# `disagreement` is a mean over at most so many saved epochs.
_DISAGREEMENT_EPOCHS = 10
# Classes whose labels differ less in number are taken to be equally frequent.
_BALANCED = 3.0


def score_examples(
    run: Run,
    examples: Examples,
    *,
    gradient_scores: bool = True,
    more: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 512,
    progress: bool = True,
) -> ExampleScores:
    """Scores the training examples of a run with tied dropout.

    Args:
        run: of a network with tied layers. Where it has a recording of all
            epochs (`train` makes one), the scores of the course of the
            training are in.
        examples: the data of the run.
        gradient_scores: also `grand` and `tracin`, which take a pass of
            per-example gradients for each saved epoch.
        more: further scores by name, [N] each in the order of
            `examples.train`, more is more suspicious.
        batch_size: how many examples go through the network at once.
        progress: show a progress bar.

    Returns:
        A row for each training example, in the order of `examples.train`.

    Raises:
        ValueError: the data are not the run's, its network has no tied
            layers, no epoch was saved, or there is only one class.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> scores = score_examples(run, run.examples())
        >>> scores.suspects()[0]
    """
    run.check(examples)
    model = run.model()
    if not surgery.tied_layers(model):
        raise ValueError(
            f"The run in {run.directory} is of a network without tied layers, "
            "which cannot say what it knows with its memory off. Expected one "
            "trained with tied dropout; `scores_of_recording` takes the "
            "recording of any network, `scores_of_logits` its predictions."
        )
    train = examples.train
    _check(train)
    epochs = [epoch for epoch in run.epochs if epoch > 0]
    if not epochs:
        raise ValueError(
            f"The run in {run.directory} has no saved epoch after the "
            "initialization. Expected one that was trained."
        )

    found: dict[str, np.ndarray] = {}
    folder = run.directory / "recording"
    # One that was begun in the middle of the training says something else.
    if recorded_epochs(folder) == tuple(range(1, len(run.history) + 1)):
        found |= scores_of_recording(Recording.open(folder), train)
    tied = surgery.with_inference(model, "tied")
    drop = surgery.with_inference(model, "drop")
    with surgery.swapped_weights(model.weights, model.get_weights()):
        dropped = evaluation.make_predictor(drop)
        found["disagreement"], off = _disagreement(
            run, model, dropped, train, epochs, batch_size, progress
        )
        if gradient_scores:
            found |= _gradient_scores(run, model, tied, train, epochs, progress)
    test = examples.test
    return scores_of_logits(
        train,
        dropped=off,
        tied=evaluation.predict_logits(tied, train, batch_size=batch_size),
        held_out=None
        if not len(test)
        else (
            evaluation.predict_logits(dropped, test, batch_size=batch_size),
            test.label,
        ),
        more=found | dict(more or {}),
    )


def _disagreement(run, model, dropped, train, epochs, batch_size, progress):
    """1 - p(label | off), mean over saved epochs: [N]; the last logits."""
    count = min(len(epochs), _DISAGREEMENT_EPOCHS)
    places = np.linspace(0, len(epochs) - 1, count).round().astype(int)
    total = np.zeros(len(train))
    for place in tqdm.tqdm(
        places, desc="disagreement", unit="epoch", disable=not progress
    ):
        run.load_weights(model, epochs[place])
        logits = evaluation.predict_logits(
            dropped, train, batch_size=batch_size
        )
        total += np.exp(-evaluation.cross_entropy(logits, train.label))
    return 1 - total / count, logits


def _gradient_scores(run, model, tied, train, epochs, progress):
    """`grand` and `tracin` of the saved epochs: [N] each."""
    rates = {
        line["epoch"]: line.get("learning_rate", 1.0) for line in run.history
    }
    engine = gradients.GradientEngine(tied)
    influence = np.zeros(len(train))
    for place, epoch in enumerate(
        tqdm.tqdm(epochs, desc="gradients", unit="epoch", disable=not progress)
    ):
        run.load_weights(model, epoch)
        squared = gradients.per_example_norms(engine, train, progress=False)
        squared = (squared**2).sum(axis=1)
        influence += rates.get(epoch, 1.0) * squared
        if place == _early(len(epochs)):
            norm = np.sqrt(squared)
    return {"grand": norm, "tracin": influence}


def scores_of_logits(
    examples: Examples,
    *,
    dropped: np.ndarray,
    tied: np.ndarray | None = None,
    by_epoch: np.ndarray | None = None,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    prior: np.ndarray | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> ExampleScores:
    """The same from predictions that the caller brings.

    Args:
        examples: N training examples.
        dropped: [N, classes] logits (or log-probabilities) of a network that
            did not memorize: tied dropout in drop mode, or cross-validation.
        tied: [N, classes] logits as trained.
        by_epoch: [E, N, classes] logits as trained, after E epochs.
        held_out: ([M, classes] logits of the same network as `dropped`, [M]
            labels that are right), to which the temperature is fitted; None
            leaves it at 1.
        prior: [classes] true shares of the classes. None takes equal ones,
            or, where the most frequent label is over three times as frequent
            as the rarest, the shares of the labels.
        more: further scores by name, [N] each, more is more suspicious.

    Returns:
        All scores that these predictions allow. The combined ranking is by
        the mean rank of tied gap and dropped margin, or by the margin alone
        where there is no `tied`, after the adjustment to the prior. The
        suspicion that a label is wrong is 1 - p(label | off), adjusted and
        calibrated.

    Raises:
        ValueError: a shape does not fit the examples, a number is NaN, or
            there is only one class.
    """
    _check(examples, dropped=dropped, tied=tied, by_epoch=by_epoch)
    label = examples.label
    own = np.arange(len(label)), label
    off = evaluation.log_softmax(dropped)
    shift = _log_shift(off, label, prior)
    adjusted = evaluation.log_softmax(off - shift)
    values = {"dropped_margin": -_margin(off, label)}
    ranked = [-_margin(adjusted, label)]
    if tied is not None:
        on = evaluation.log_softmax(tied)[own]
        values["tied_gap"] = on - off[own]
        values["loss"] = -on
        ranked.append(on - adjusted[own])
    if by_epoch is not None:
        by_epoch = np.asarray(by_epoch)
        values |= _dynamics(
            np.stack([_margin(logits, label) for logits in by_epoch]),
            np.stack([_errors(logits, label) for logits in by_epoch]),
        )
    for name, value in (more or {}).items():
        values[name] = _checked_score(name, value, examples)
    temperature = 1.0
    if held_out is not None:
        temperature = fit_temperature(held_out[0] - shift, held_out[1])
    calibrated = evaluation.log_softmax(adjusted / temperature)
    combined = np.mean([_ranks(value) for value in ranked], axis=0)
    return ExampleScores(
        names=("combined", *values),
        example_id=examples.example_id,
        subset=examples.subset,
        label=label,
        true_label=examples.true_label,
        suggested=adjusted.argmax(axis=1),
        values=np.stack([combined, *values.values()], axis=1),
        suspicion=1 - np.exp(calibrated[own]),
    )


def _log_shift(off, label, prior) -> np.ndarray:
    """What adjusts log-probabilities to the prior: [classes]."""
    classes = off.shape[1]
    count = np.bincount(label, minlength=classes)
    if prior is None:
        is_balanced = count.max() <= _BALANCED * count.min()
        prior = np.ones(classes) if is_balanced else count
    prior = np.asarray(prior, float)
    if prior.shape != (classes,) or not (prior >= 0).all() or not prior.any():
        raise ValueError(
            f"`prior` expected {classes} shares that are not negative, one "
            f"for each class. Received: {prior.tolist()}."
        )
    tiny = 1e-6
    share = np.exp(off).mean(axis=0)
    return np.log(np.maximum(share, tiny)) - np.log(
        np.maximum(prior / prior.sum(), tiny)
    )


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """The temperature by which to divide logits: that of the smallest loss.

    Args:
        logits: [M, classes] on examples that were not trained on.
        label: [M], right ones.

    Reference: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    temperatures = np.exp(np.linspace(np.log(0.1), np.log(10), 201))
    losses = [
        evaluation.cross_entropy(logits / temperature, label).mean()
        for temperature in temperatures
    ]
    return float(temperatures[int(np.argmin(losses))])


def critical_set_score(result: CriticalUnits, examples: Examples) -> np.ndarray:
    """Minus the size of each example's critical set, for `more`: [N].

    0 for an example that was misclassified from the start.

    Raises:
        ValueError: an example was not searched.
    """
    size = dict(
        zip(result.example_id.tolist(), result.size.tolist(), strict=True)
    )
    size |= dict.fromkeys(result.skipped.tolist(), 0)
    missing = [i for i in examples.example_id.tolist() if i not in size]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(examples)} examples were not "
            f"searched, for instance id {missing[:5]}. Search them all: "
            "find_critical_units(..., ids=examples.example_id)."
        )
    return -np.array([size[i] for i in examples.example_id.tolist()], float)


def evaluate_scores(scores: ExampleScores) -> list[dict[str, Any]]:
    """How well each score finds the wrong labels, where they are known.

    Returns:
        A row for each score: area under the ROC curve, average precision, and
        precision at the true number of wrong labels, each with a 95 %
        bootstrap interval. Empty where no label is known to be wrong.
    """
    wrong = scores.label != scores.true_label
    if not wrong.any() or wrong.all():
        return []
    rng = np.random.default_rng(0)
    weights = np.ones((1 + _RESAMPLES, len(wrong)), np.int32)
    weights[1:] = rng.multinomial(
        len(wrong), np.full(len(wrong), 1 / len(wrong)), _RESAMPLES
    )
    rows = []
    for k, name in enumerate(scores.names):
        row: dict[str, Any] = {"score": name}
        found = _retrieval(wrong, scores.values[:, k], weights)
        for measure, values in found.items():
            low, high = np.nanquantile(values[1:], [0.025, 0.975])
            row |= {
                measure: float(values[0]),
                f"{measure}_low": float(low),
                f"{measure}_high": float(high),
            }
        rows.append(row)
    return rows


def _retrieval(wrong, value, weights) -> dict[str, np.ndarray]:
    """Three measures of a ranking for each row of weights: [B] each.

    Equal values are one step of the curve, as in scikit-learn.
    """
    order = np.argsort(-value, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(value[order])), len(value) - 1)
    weights = weights[:, order]
    hits = np.cumsum(weights * wrong[order], axis=1, dtype=np.int32)
    seen = np.cumsum(weights, axis=1, dtype=np.int32)
    # As floats: a product of two counts may not fit their integers.
    total, count = (part[:, -1].astype(np.float64) for part in (hits, seen))
    true, all_ = hits[:, ends], seen[:, ends]
    false = all_ - true
    zero = np.zeros((len(weights), 1), true.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(all_ > 0, true / all_, 0.0)
        steps = np.diff(true, axis=1, prepend=zero)
        falls = np.diff(false, axis=1, prepend=zero)
        area = (falls * (true - steps / 2)).sum(axis=1)
        place = (seen < total[:, np.newaxis]).sum(axis=1)
        return {
            "auroc": area / (total * (count - total)),
            "average_precision": (steps * precision).sum(axis=1) / total,
            "precision_at_n": np.take_along_axis(
                hits / seen, place[:, np.newaxis], axis=1
            )[:, 0],
        }


def calibration_error(scores: ExampleScores, bins: int = 10) -> float:
    """Mean gap between suspicion and share of wrong labels, bin by bin.

    The expected calibration error of `suspicion`, in [0, 1]; NaN where no
    label is known to be wrong.
    """
    wrong = scores.label != scores.true_label
    if not wrong.any():
        return float("nan")
    place = np.minimum((scores.suspicion * bins).astype(int), bins - 1)
    gaps = np.bincount(place, wrong - scores.suspicion, minlength=bins)
    return float(np.abs(gaps).sum() / len(wrong))


def suggestions_right(scores: ExampleScores) -> tuple[float, float, float]:
    """Share of wrong labels whose suggestion is the true one, and interval."""
    wrong = scores.label != scores.true_label
    if not wrong.any():
        return float("nan"), float("nan"), float("nan")
    right = (scores.suggested == scores.true_label)[wrong].astype(float)
    return float(right.mean()), *bootstrap_interval(right, np.mean)


def _check(examples: Examples, **logits: np.ndarray | None) -> None:
    if len(np.unique(examples.label)) < 2:
        raise ValueError(
            f"All {len(examples)} labels of {examples.name} are "
            f"{examples.label[:1].tolist()}. Expected at least two classes: "
            "among one, none can be wrong."
        )
    expected = (len(examples), examples.classes)
    for name, value in logits.items():
        if value is None:
            continue
        if np.shape(value)[-2:] != expected:
            raise ValueError(
                f"`{name}` expected logits of shape {expected}, one row for "
                f"each example. Received: shape {np.shape(value)}."
            )
        if not np.isfinite(value).all():
            bad = ~np.isfinite(value).all(axis=-1).reshape(-1, len(examples))
            ids = examples.example_id[bad.any(axis=0)][:5].tolist()
            raise ValueError(
                f"`{name}` has logits that are not finite, of the examples "
                f"{ids}. Expected predictions of all examples in each epoch."
            )


def _checked_score(name: str, value, examples: Examples) -> np.ndarray:
    value = np.asarray(value, float)
    if value.shape != (len(examples),):
        raise ValueError(
            f"The score {name!r} expected {len(examples)} numbers, one for "
            f"each example. Received: shape {value.shape}."
        )
    if not np.isfinite(value).all():
        ids = examples.example_id[~np.isfinite(value)]
        raise ValueError(
            f"The score {name!r} is not finite for {len(ids)} examples, for "
            f"instance id {ids[:5].tolist()}. Expected a number for each. For "
            "memorization estimates add runs with further subset_seeds, until "
            "each example is in some and left out of others."
        )
    return value


def scores_of_recording(
    recording: Recording, examples: Examples
) -> dict[str, np.ndarray]:
    """`aum`, `forgetting`, `first_learned` and `el2n` of a recording.

    An epoch in which an example was not seen changes nothing of what is known
    of it; it does not count in the mean of `aum`.

    Args:
        recording: by `RecordExamples`, or of a run that `train` made.
        examples: N training examples.

    Returns:
        Name of the score -> [N], more is more suspicious.

    Raises:
        ValueError: the recording is of other examples or labels, or one was
            never seen.

    Example:
        >>> recording = Recording.open("runs/mine/recording")
        >>> scores_of_recording(recording, examples.train)["aum"].argsort()
    """
    found = recording.of(examples)
    return _dynamics(found.margin, found.error)


def _dynamics(margin: np.ndarray, error: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of the course of a training: [E, N] -> [N] each."""
    right = _filled(margin) > 0
    epochs = len(right)
    forgotten = (right[:-1] & ~right[1:]).sum(axis=0)
    learned = right.any(axis=0)
    first = np.where(learned, right.argmax(axis=0), epochs)
    return {
        "aum": -np.nanmean(margin, axis=0, dtype=np.float64),
        "forgetting": np.where(learned, forgotten, epochs).astype(float),
        "first_learned": first.astype(float),
        "el2n": _filled(error)[_early(epochs)].astype(float),
    }


def _filled(values: np.ndarray) -> np.ndarray:
    """[E, N] with NaN replaced by the last number before, else the first."""
    seen = ~np.isnan(values)
    epoch = np.arange(len(values))[:, np.newaxis]
    before = np.maximum.accumulate(np.where(seen, epoch, -1), axis=0)
    source = np.where(before >= 0, before, seen.argmax(axis=0))
    return np.take_along_axis(values, source, axis=0)


def _errors(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """|| softmax - one-hot || : [N]."""
    wrong = np.exp(evaluation.log_softmax(logits))
    wrong[np.arange(len(label)), label] -= 1
    return np.sqrt((wrong**2).sum(axis=1))


def _early(epochs: int) -> int:
    """The place of the early epoch among the saved ones."""
    return max(0, round(_EARLY * epochs) - 1)


def _margin(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The label's logit less the best other one: [N]."""
    rows = np.arange(len(label))
    others = logits.astype(np.float64)
    others[rows, label] = -np.inf
    return logits[rows, label] - others.max(axis=1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks in [0, 1]; equal values share one."""
    _, inverse, count = np.unique(
        values, return_inverse=True, return_counts=True
    )
    last = np.cumsum(count)
    middle = last - (count - 1) / 2
    return middle[inverse] / len(values)
