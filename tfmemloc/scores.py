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
- `disagreement`: 1 - p(label | off), mean over the judging epochs;
- `loss`: cross-entropy of the label at the end, as trained;
- `aum`: minus the area under the margin, the mean over epochs of the label's
  logit less the best other one (Pleiss et al., 2020);
- `forgetting`: how often an example went from right to wrong between epochs;
  one that was never right gets the number of epochs (Toneva et al., 2019);
- `first_learned`: how many epochs went by before it was first right; all of
  them if never (ibid.);
- `el2n`: || softmax - one-hot || in an early epoch (Paul et al., 2021);
- `grand`: norm of the loss gradient at an early epoch (ibid.), where one was
  saved;
- `tracin`: self-influence, the sum over saved epochs of the learning rate
  (1 where the history has none) times the squared gradient norm (Pruthi et
  al., 2020).

`aum` to `el2n` come from what the training steps recorded (`recording.py`).
Scores that take trainings of their own, `second_split_times` and
`estimate_memorization`, are in `memorization.py`.

The combined ranking, the suggestion and the suspicion come of what the dropped
network says in the *judging epochs*, the saved ones of the second half of the
training: one epoch's word on one example is a noisy one, their mean is less so.
A class with many wrong labels is learned badly by the generalization units,
too: the dropped network gives it too little everywhere. Each epoch's mean share
of a class is therefore divided out (logit adjustment; Menon et al., 2021).

That the network, asked without its memory, says something else is no proof
that the label is wrong: where it knows little, it errs more often than the
labels do. The suspicion weighs both. A temperature, fitted to the test
examples, makes the network's word a calibrated one (Guo et al., 2017); how
often each class is labelled as each other is estimated from what it says of
all examples (Dawid and Skene, 1979); and Bayes' rule gives the probability that
a label is wrong. It errs on the side of trusting labels, because what they
teach the generalization units makes them look right.

The tied gap is not part of the ranking: where the training ends before all
labels are learned, it is small for those that were not, right or wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import evaluation, gradients, surgery
from tfmemloc.data import Examples
from tfmemloc.layers import check_choice
from tfmemloc.recording import Recording, recorded_epochs
from tfmemloc.results import CriticalUnits, ExampleScores, bootstrap_interval
from tfmemloc.runs import Run

# What `evaluate_scores` says of each score.
MEASURES = ("auroc", "average_precision", "precision_at_n")
_RESAMPLES = 200
# How many numbers a pass over resamples holds at once.
_RESAMPLED_NUMBERS = 4_000_000
# The early epoch of EL2N and GraNd, as a fraction of the training, and the
# latest that may still stand for it.
_EARLY, _NOT_EARLY = 0.1, 0.5
# Which part of the training judges, by at most so many saved epochs.
_JUDGING, _JUDGING_EPOCHS = 0.5, 10
# Classes whose labels differ less in number are taken to be equally frequent.
_BALANCED = 3.0
PRIORS = ("auto", "equal", "labels")
# A temperature is fitted to no fewer examples.
_FEWEST_HELD_OUT = 50
# When the rates of wrong labels stay, and how long they are waited for.
_SAME_RATE, _MOST_ROUNDS = 1e-6, 1000
# Keeps the logarithm of a probability of 0 finite.
_TINY = 1e-12


def score_examples(
    runs: Run | Sequence[Run],
    examples: Examples,
    *,
    gradient_scores: bool = True,
    prior: str | np.ndarray = "auto",
    more: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 512,
    progress: bool = True,
) -> ExampleScores:
    """Scores the training examples of a run with tied dropout, or of several.

    Args:
        runs: of a network with tied layers. Where it has a recording of all
            epochs in its folder `recording` (`train` makes one, and so does
            `RecordExamples`), the scores of the course of the training are in.
            Or several runs of the same data, which differ in their seed: their
            judging epochs rank together, and other scores are means.
        examples: the data of the runs.
        gradient_scores: also `grand` and `tracin`, which take a pass of
            per-example gradients for each saved epoch.
        prior: see `scores_of_logits`.
        more: further scores by name, [N] each in the order of
            `examples.train`, more is more suspicious.
        batch_size: how many examples go through the network at once.
        progress: show a progress bar.

    Returns:
        A row for each training example, in the order of `examples.train`.

    Raises:
        ValueError: the data are not those of a run, its network has no tied
            layers, no epoch was saved, its recording is of other epochs, one
            run has scores that another lacks, or there is only one class.

    Example:
        >>> run = Run.open("runs/demo/example_tied")
        >>> scores = score_examples(run, run.examples())
        >>> scores.suspects()[0]
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise ValueError("`runs` expected a run, or several. Received: none.")
    train = examples.train
    _check_classes(train)
    for run in runs:
        run.check(examples)
    judges, held_out, values = [], [], []
    for run in runs:
        model = check_scorable(run)
        found = _recorded_scores(run, examples)
        if gradient_scores:
            found |= _gradient_scores(run, model, train, progress)
        on, off, other = _predictions(
            run, model, examples, batch_size, progress
        )
        judges.append(off)
        held_out.append(other)
        values.append(_values(train.label, off, tied=on) | found)
    _check_same_scores(runs, values)
    means = {
        name: np.mean([each[name] for each in values], axis=0)
        for name in values[0]
    }
    return _ranked(
        train,
        np.concatenate(judges),
        (np.concatenate(held_out), examples.test.label),
        prior,
        means,
        more,
    )


def _predictions(run, model, examples: Examples, batch_size, progress):
    """Log-probabilities, the last epoch being the end of the training.

    [N, classes] of the training examples as trained, [J, N, classes] dropped,
    in the judging epochs, and [J, M, classes] likewise of the test examples.
    """
    dropped = evaluation.make_predictor(surgery.with_inference(model, "drop"))
    tied = surgery.with_inference(model, "tied")
    train, test = examples.train, examples.test
    rows = []
    for epoch in tqdm.tqdm(
        _judging_epochs(run.epochs),
        desc="judging",
        unit="epoch",
        disable=not progress,
    ):
        run.load_weights(model, epoch)
        rows.append(
            np.concatenate(
                [
                    evaluation.predict_logits(
                        dropped, part, batch_size=batch_size
                    )
                    for part in (train, test)
                    if len(part)
                ]
            )
        )
    on = evaluation.predict_logits(tied, train, batch_size=batch_size)
    rows = np.stack(rows)
    off = _log_p("dropped", rows[:, : len(train)], train, (3,))
    others, _ = _checked_held_out(
        (rows[:, len(train) :], test.label), train, off
    )
    return _log_p("tied", on, train, (2,)), off, others


def _check_same_scores(runs: Sequence[Run], values) -> None:
    """Refuses runs of which some have scores that others have not."""
    for run, found in zip(runs, values, strict=True):
        if found.keys() != values[0].keys():
            only = sorted(found.keys() ^ values[0].keys())
            raise ValueError(
                f"Of {runs[0].directory} and {run.directory} only one has the "
                f"scores {only}. Expected runs of the same settings, apart "
                "from the seed, each with its recording and saved epochs, or "
                "none."
            )


def check_scorable(run: Run) -> keras.Model:
    """The network of a run, refused if `score_examples` cannot score it.

    Raises:
        ValueError: its network has no tied layers, or no epoch was saved.
    """
    model = run.model()
    if not surgery.tied_layers(model):
        raise ValueError(
            f"The run in {run.directory} is of a network without tied layers, "
            "which cannot say what it knows with its memory off. Expected one "
            "trained with tied dropout; `scores_of_recording` takes the "
            "recording of any network, `scores_of_logits` its predictions."
        )
    if max(run.epochs, default=0) == 0:
        raise ValueError(
            f"The run in {run.directory} has no saved epoch after the "
            "initialization. Expected one that was trained."
        )
    return model


def _judging_epochs(saved: Sequence[int]) -> list[int]:
    """Saved epochs of the second half of the training, the last among them."""
    late = [epoch for epoch in saved if epoch > _JUDGING * max(saved)]
    count = min(len(late), _JUDGING_EPOCHS)
    places = np.linspace(len(late) - 1, 0, count).round().astype(int)
    return [late[place] for place in places[::-1]]


def _recorded_scores(run: Run, examples: Examples) -> dict[str, np.ndarray]:
    """The scores of the run's recording; none where there is none."""
    folder = run.directory / "recording"
    recorded = recorded_epochs(folder)
    if not recorded:
        return {}
    trained = max(
        (line["epoch"] for line in run.history), default=max(run.epochs)
    )
    if recorded != tuple(range(1, trained + 1)):
        raise ValueError(
            f"{folder} holds the epochs {_listed(recorded)}, the run those up "
            f"to {trained}. Expected a recording of the whole training. If it "
            "was killed, let the same command finish it; or move the folder "
            "away to score the run without it."
        )
    return scores_of_recording(Recording.open(folder), examples.train)


def _listed(epochs: Sequence[int]) -> str:
    shown = [str(epoch) for epoch in epochs]
    return ", ".join(
        shown if len(shown) < 8 else [*shown[:3], "...", shown[-1]]
    )


def _gradient_scores(run, model, train, progress):
    """`grand`, where an early epoch was saved, and `tracin`: [N] each."""
    rates = {line["epoch"]: _rate(line) for line in run.history}
    epochs = [epoch for epoch in run.epochs if epoch > 0]
    wanted = _early(max(epochs)) + 1
    early = min(epochs, key=lambda epoch: abs(epoch - wanted))
    engine = gradients.GradientEngine(surgery.with_inference(model, "tied"))
    found = {"tracin": np.zeros(len(train))}
    for epoch in tqdm.tqdm(
        epochs, desc="gradients", unit="epoch", disable=not progress
    ):
        run.load_weights(model, epoch)
        squared = gradients.per_example_norms(engine, train, progress=False)
        squared = (squared**2).sum(axis=1)
        found["tracin"] += rates.get(epoch, 1.0) * squared
        if epoch == early and early <= max(wanted, _NOT_EARLY * max(epochs)):
            found["grand"] = np.sqrt(squared)
    return found


def _rate(line: Mapping[str, Any]) -> float:
    """The learning rate of a line of the history, ours or Keras's; else 1."""
    return line.get(
        "learning_rate", line.get("logs", {}).get("learning_rate", 1.0)
    )


def scores_of_logits(
    examples: Examples,
    *,
    dropped: np.ndarray,
    tied: np.ndarray | None = None,
    by_epoch: np.ndarray | None = None,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    prior: str | np.ndarray = "auto",
    more: Mapping[str, np.ndarray] | None = None,
) -> ExampleScores:
    """The same from predictions that the caller brings.

    Predictions are logits, log-probabilities, or probabilities (rows that are
    not negative and add up to 1).

    Args:
        examples: N training examples.
        dropped: [N, classes] of a network that did not memorize: tied dropout
            in drop mode, or cross-validation. Or [J, N, classes] of J judging
            epochs or networks.
        tied: [N, classes] as trained.
        by_epoch: [E, N, classes] as trained, after E epochs.
        held_out: (predictions of M other examples in the form of `dropped`,
            [M] their labels), to which the temperature is fitted. None, or
            fewer than 50, leave it at 1.
        prior: true shares of the classes: `"equal"`; `"labels"`, those of the
            labels; `"auto"`, the latter where the most frequent label is over
            three times as frequent as the rarest, else the former; or
            [classes] numbers.
        more: further scores by name, [N] each, more is more suspicious.

    Returns:
        All scores that these predictions allow. The combined ranking is the
        mean of two ranks, by margin and by probability of the label, of the
        mean of the judging predictions after the adjustment to the prior. The
        suspicion is the probability that the label is wrong, given that mean
        and the estimated rates at which classes are labelled as others.

    Raises:
        ValueError: a shape does not fit the examples, a number is NaN, a name
            of `more` is taken, or there is only one class.

    Example:
        >>> chance = cross_val_predict(classifier, x, y, method="predict_proba")
        >>> scores_of_logits(examples.train, dropped=chance).suspects()
    """
    _check_classes(examples)
    label = examples.label
    dropped = _log_p("dropped", dropped, examples, (2, 3))
    if held_out is not None:
        held_out = _checked_held_out(held_out, examples, dropped)
    judges = dropped.reshape(-1, *dropped.shape[-2:])
    if tied is not None:
        tied = _log_p("tied", tied, examples, (2,))
    values = _values(label, judges, tied=tied)
    if by_epoch is not None:
        by_epoch = _log_p("by_epoch", by_epoch, examples, (3,))
        values |= _dynamics(
            np.stack([_margin(log_p, label) for log_p in by_epoch]),
            np.stack([_errors(log_p, label) for log_p in by_epoch]),
        )
    return _ranked(examples, judges, held_out, prior, values, more)


def _values(label, judges, *, tied=None) -> dict[str, np.ndarray]:
    """The scores of the predictions of one training: [N] each."""
    own, last = (np.arange(len(label)), label), judges[-1]
    chance = np.exp(judges[:, own[0], own[1]])
    values = {
        "dropped_margin": -_margin(last, label),
        "disagreement": 1 - chance.mean(axis=0),
    }
    if tied is not None:
        values |= {"tied_gap": tied[own] - last[own], "loss": -tied[own]}
    return values


def _ranked(
    examples: Examples, judges, held_out, prior, values, more
) -> ExampleScores:
    """The scores, and the ranking that the judges make."""
    label = examples.label
    own = np.arange(len(label)), label
    checked: dict[str, np.ndarray] = {}
    for name, value in [*values.items(), *(more or {}).items()]:
        checked[name] = _checked_score(name, value, examples, checked)
    judged, judged_held_out = _judged(judges, label, prior, held_out)
    temperature = 1.0
    if held_out is not None and len(held_out[1]) >= _FEWEST_HELD_OUT:
        temperature = fit_temperature(judged_held_out, held_out[1])
    chance = np.exp(evaluation.log_softmax(judged / temperature))
    combined = _ranks(-_margin(judged, label)) + _ranks(-judged[own])
    return ExampleScores(
        names=("combined", *checked),
        example_id=examples.example_id,
        subset=examples.subset,
        label=label,
        true_label=examples.true_label,
        suggested=judged.argmax(axis=1),
        values=np.stack([combined / 2, *checked.values()], axis=1),
        suspicion=1 - _true_classes(chance, label)[own],
        pixels=examples.fingerprint()["train"]["image"],
    )


def _judged(judges, label, prior, held_out):
    """The judges' mean, adjusted to the prior: log-probabilities.

    [N, classes] of the training examples, [M, classes] of the held-out ones.
    """
    if held_out is not None:
        judges = np.concatenate([judges, held_out[0]], axis=1)
    total = sum(np.exp(_adjusted(log_p, label, prior)) for log_p in judges)
    mean = np.log(np.maximum(total / len(judges), _TINY))
    judged = _adjusted(mean, label, prior)
    return judged[: len(label)], judged[len(label) :]


def _adjusted(log_p, label, prior) -> np.ndarray:
    """Log-probabilities whose class shares are those of the prior.

    The shares are means over the training examples, which come first.
    """
    share = np.exp(log_p[: len(label)]).mean(axis=0)
    wanted = _shares(label, log_p.shape[1], prior)
    tiny = 1e-6
    shift = np.log(np.maximum(share, tiny)) - np.log(np.maximum(wanted, tiny))
    return evaluation.log_softmax(log_p - shift)


def _shares(label, classes: int, prior: str | np.ndarray) -> np.ndarray:
    """The true shares of the classes, [classes], that add up to 1."""
    if isinstance(prior, str):
        check_choice("prior", prior, PRIORS)
        count = np.bincount(label, minlength=classes)
        is_balanced = count.max() <= _BALANCED * count.min()
        is_equal = prior == "equal" or (prior == "auto" and is_balanced)
        prior = np.ones(classes) if is_equal else count
    prior = np.asarray(prior, float)
    if prior.shape != (classes,) or not (prior >= 0).all() or not prior.any():
        raise ValueError(
            f"`prior` expected {classes} shares that are not negative, one "
            f"for each class. Received: {prior.tolist()}."
        )
    return prior / prior.sum()


def _true_classes(chance: np.ndarray, label: np.ndarray) -> np.ndarray:
    """p(true class | prediction, label): [N, classes].

    Alternates between it and the rates at which each class is labelled as each
    other, until they stay. One example of each class counts as labelled at
    random, so that no rate is 0.

    Args:
        chance: [N, classes] p(true class | prediction), calibrated.
        label: [N] given.

    Reference: Dawid and Skene, Maximum Likelihood Estimation of Observer
    Error-Rates Using the EM Algorithm, 1979.
    """
    classes = chance.shape[1]
    given = np.eye(classes)[label]
    rates = np.where(np.eye(classes, dtype=bool), 0.9, 0.1 / (classes - 1))
    for _ in range(_MOST_ROUNDS):
        true = np.maximum(chance, _TINY) * rates[:, label].T
        true /= true.sum(axis=1, keepdims=True)
        counts = true.T @ given + 1 / classes
        before, rates = rates, counts / counts.sum(axis=1, keepdims=True)
        if np.abs(rates - before).max() < _SAME_RATE:
            break
    return true


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
    parts = [[] for _ in scores.names]
    for weights in _resamples(len(wrong)):
        for part, value in zip(parts, scores.values.T, strict=True):
            part.append(_retrieval(wrong, value, weights))
    rows = []
    for name, part in zip(scores.names, parts, strict=True):
        row: dict[str, Any] = {"score": name}
        for measure in MEASURES:
            values = np.concatenate([found[measure] for found in part])
            low, high = np.nanquantile(values[1:], [0.025, 0.975])
            row |= {
                measure: float(values[0]),
                f"{measure}_low": float(low),
                f"{measure}_high": float(high),
            }
        rows.append(row)
    return rows


def _resamples(count: int) -> Iterator[np.ndarray]:
    """How often each example counts: [B, N], first once each, then drawn."""
    rng = np.random.default_rng(0)
    yield np.ones((1, count), np.int32)
    step = max(1, _RESAMPLED_NUMBERS // count)
    for start in range(0, _RESAMPLES, step):
        yield rng.multinomial(
            count,
            np.full(count, 1 / count),
            min(step, _RESAMPLES - start),
        ).astype(np.int32)


def _retrieval(wrong, value, weights) -> dict[str, np.ndarray]:
    """Three measures of a ranking for each row of weights: [B] each.

    Equal values are one step of the curve, as in scikit-learn; where the last
    place is among equal ones, the precision is the mean over their orders.
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
        step = (all_ < total[:, np.newaxis]).sum(axis=1)[:, np.newaxis]
        here, fall, hit, reached = (
            np.take_along_axis(part, step, axis=1)[:, 0]
            for part in (steps, falls, true, all_)
        )
        # The last step may go past the place: so many are taken of it.
        taken = total - (reached - here - fall)
        expected = hit - here + taken * here / (here + fall)
        return {
            "auroc": area / (total * (count - total)),
            "average_precision": (steps * precision).sum(axis=1) / total,
            "precision_at_n": expected / total,
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


def _check_classes(examples: Examples) -> None:
    if len(np.unique(examples.label)) < 2:
        raise ValueError(
            f"All {len(examples)} labels of {examples.name} are "
            f"{examples.label[:1].tolist()}. Expected at least two classes: "
            "among one, none can be wrong."
        )


def _log_p(name, value, examples: Examples, ranks) -> np.ndarray:
    """Predictions of the examples as log-probabilities: [(J,) N, classes]."""
    value = np.asarray(value)
    expected = (len(examples), examples.classes)
    if (
        value.ndim not in ranks
        or value.shape[-2:] != expected
        or not len(value)
    ):
        rows = "one row for each example and one column for each class"
        if 3 in ranks:
            epochs = ", for each epoch" if 2 not in ranks else ", or a stack"
            rows += epochs
        raise ValueError(
            f"`{name}` expected logits of shape {expected}, {rows}. Received: "
            f"shape {value.shape}. Where a class has no label, say how many "
            "there are: `from_arrays(..., classes=...)`."
        )
    bad = ~np.isfinite(value).all(axis=-1).reshape(-1, len(examples))
    if bad.any():
        ids = examples.example_id[bad.any(axis=0)][:5].tolist()
        raise ValueError(
            f"`{name}` has logits that are not finite, of the examples "
            f"{ids}. Expected predictions of all examples in each epoch."
        )
    return _normalized(value)


def _normalized(value: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits, or of probabilities."""
    value = value.astype(np.float64)
    if (value >= 0).all() and (np.abs(value.sum(axis=-1) - 1) < 1e-3).all():
        value = np.log(np.maximum(value, _TINY))
    return evaluation.log_softmax(value)


def _checked_held_out(held_out, examples: Examples, dropped: np.ndarray):
    """Log-probabilities [J, M, classes] and labels [M]."""
    value, label = (np.asarray(part) for part in held_out)
    expected = (*dropped.shape[:-2], len(label), examples.classes)
    if value.shape != expected or label.ndim != 1:
        raise ValueError(
            "`held_out` expected predictions, in the form of `dropped`, and "
            f"one label for each: shapes {expected} and {label.shape[:1]}. "
            f"Received: shapes {value.shape} and {label.shape}."
        )
    is_class = label.dtype.kind in "iu" and np.isin(
        label, np.arange(examples.classes)
    )
    if not np.all(is_class) or not np.isfinite(value).all():
        raise ValueError(
            "`held_out` expected finite predictions, and integer labels from 0 "
            f"to {examples.classes - 1}. Received: labels of dtype "
            f"{label.dtype}, for instance {label[:5].tolist()}, and "
            f"{int((~np.isfinite(value)).sum())} predictions not finite."
        )
    judges = math.prod(dropped.shape[:-2])
    return _normalized(value).reshape(judges, *expected[-2:]), label


def _checked_score(name: str, value, examples: Examples, taken) -> np.ndarray:
    """A score that the caller brings: [N]."""
    if name in taken or name in ExampleScores.COLUMNS:
        raise ValueError(
            f"A score of `more` is called {name!r}, as a column of the result "
            "already is. Give it another name."
        )
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
        ValueError: the recording is of other examples or labels, one was
            never seen, or epochs are missing.

    Example:
        >>> recording = Recording.open("runs/mine/recording")
        >>> scores_of_recording(recording, examples.train)["aum"].argsort()
    """
    epochs = recording.epochs
    if epochs != tuple(range(1, len(epochs) + 1)):
        raise ValueError(
            f"The recording holds the epochs {_listed(epochs)}. Expected all "
            "from the first to the last: when an example was learned is not "
            "known otherwise."
        )
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
