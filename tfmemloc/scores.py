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
- `loss`: cross-entropy of the label at the end, as trained;
- `aum`: minus the area under the margin, the mean over epochs of the label's
  logit less the best other one (Pleiss et al., 2020);
- `forgetting`: how often an example went from right to wrong between saved
  epochs; one never right counts as all (Toneva et al., 2019);
- `first_learned`: the first saved epoch at which it is right (ibid.);
- `el2n`: || softmax - one-hot || at an early epoch (Paul et al., 2021);
- `grand`: norm of the loss gradient at an early epoch (ibid.);
- `tracin`: self-influence, the sum over saved epochs of the learning rate
  times the squared gradient norm (Pruthi et al., 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn import metrics
from tqdm import auto as tqdm

from tfmemloc import evaluation, gradients, surgery
from tfmemloc.data import Examples
from tfmemloc.results import ExampleScores, bootstrap_interval
from tfmemloc.runs import Run

# The early epoch of EL2N and GraNd, as a fraction of the training.
_EARLY = 0.1


def score_examples(
    run: Run,
    examples: Examples,
    *,
    gradient_scores: bool = True,
    batch_size: int = 512,
    progress: bool = True,
) -> ExampleScores:
    """Scores the training examples of a run with tied dropout.

    Args:
        run: with saved epochs, of a network with tied layers.
        examples: the data of the run.
        gradient_scores: also `grand` and `tracin`, which take a pass of
            per-example gradients for each saved epoch.
        batch_size: how many examples go through the network at once.
        progress: show a progress bar.

    Returns:
        A row for each training example, in the order of `examples.train`.

    Raises:
        ValueError: the data are not the run's, its network has no tied
            layers, only one epoch was saved, or there is only one class.

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
            "trained with tied dropout; `scores_of_logits` takes predictions "
            "of any network."
        )
    train = examples.train
    epochs = [epoch for epoch in run.epochs if epoch > 0]
    if len(epochs) < 2:
        raise ValueError(
            f"The run in {run.directory} has saved epochs {epochs}. Expected "
            "at least two after the initialization."
        )
    tied = surgery.with_inference(model, "tied")
    predict = evaluation.make_predictor(tied)
    rates = {
        line["epoch"]: line.get("learning_rate", 1.0) for line in run.history
    }
    engine = gradients.GradientEngine(tied) if gradient_scores else None
    by_epoch, norms = [], []
    with surgery.swapped_weights(model.weights, model.get_weights()):
        for epoch in tqdm.tqdm(
            epochs, desc="scores", unit="epoch", disable=not progress
        ):
            run.load_weights(model, epoch)
            by_epoch.append(
                evaluation.predict_logits(predict, train, batch_size=batch_size)
            )
            if engine is not None:
                squared = gradients.per_example_norms(engine, train) ** 2
                norms.append(squared.sum(axis=1))
    dropped = evaluation.predict_logits(
        surgery.with_inference(model, "drop"), train, batch_size=batch_size
    )
    more = {}
    if norms:
        early = _early(len(epochs))
        weights = np.array([rates.get(epoch, 1.0) for epoch in epochs])
        more = {
            "grand": np.sqrt(norms[early]),
            "tracin": (weights[:, np.newaxis] * np.stack(norms)).sum(axis=0),
        }
    return scores_of_logits(
        train,
        dropped=dropped,
        tied=by_epoch[-1],
        by_epoch=np.stack(by_epoch),
        more=more,
    )


def scores_of_logits(
    examples: Examples,
    *,
    dropped: np.ndarray,
    tied: np.ndarray | None = None,
    by_epoch: np.ndarray | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> ExampleScores:
    """The same from predictions that the caller brings.

    Args:
        examples: N training examples.
        dropped: [N, classes] logits (or log-probabilities) of a network that
            did not memorize: tied dropout in drop mode, or cross-validation.
        tied: [N, classes] logits as trained.
        by_epoch: [E, N, classes] logits as trained, after E epochs.
        more: further scores by name, [N] each, more is more suspicious.

    Returns:
        All scores that these predictions allow. The combined ranking is by
        the mean rank of the tied gap and the dropped margin where there is
        `tied`, else by the dropped margin alone. The suspicion that a label
        is wrong is 1 - p(label | memorization units off).

    Raises:
        ValueError: a shape does not fit the examples, a number is NaN, or
            there is only one class.
    """
    _check(examples, dropped=dropped, tied=tied, by_epoch=by_epoch)
    label = examples.label
    off = evaluation.log_softmax(dropped)
    values = {"dropped_margin": -_margin(off, label)}
    if tied is not None:
        own = np.arange(len(label)), label
        values["tied_gap"] = evaluation.log_softmax(tied)[own] - off[own]
        values["loss"] = -evaluation.log_softmax(tied)[own]
    if by_epoch is not None:
        values |= _dynamics(by_epoch, label)
    values |= {name: np.asarray(v, float) for name, v in (more or {}).items()}
    used = [name for name in ("tied_gap", "dropped_margin") if name in values]
    combined = np.mean([_ranks(values[name]) for name in used], axis=0)
    suggested = off.argmax(axis=1)
    return ExampleScores(
        names=("combined", *values),
        example_id=examples.example_id,
        subset=examples.subset,
        label=label,
        true_label=examples.true_label,
        suggested=suggested,
        values=np.stack([combined, *values.values()], axis=1),
        suspicion=1 - np.exp(off[np.arange(len(label)), label]),
    )


def evaluate_scores(scores: ExampleScores) -> list[dict[str, Any]]:
    """How well each score finds the wrong labels, where they are known.

    Returns:
        A row for each score: area under the ROC curve with a 95 % bootstrap
        interval, average precision, and precision at the true number of
        wrong labels. Empty where no label is known to be wrong.
    """
    wrong = scores.label != scores.true_label
    if not wrong.any() or wrong.all():
        return []
    rows = []
    for k, name in enumerate(scores.names):
        value = scores.values[:, k]
        low, high = _auroc_interval(wrong, value)
        top = np.argsort(-value, kind="stable")[: wrong.sum()]
        rows.append(
            {
                "score": name,
                "auroc": float(metrics.roc_auc_score(wrong, value)),
                "auroc_low": low,
                "auroc_high": high,
                "average_precision": float(
                    metrics.average_precision_score(wrong, value)
                ),
                "precision_at_n": float(wrong[top].mean()),
            }
        )
    return rows


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


def _dynamics(by_epoch: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of the course of a training: [E, N, classes] -> [N] each."""
    margins = np.stack([_margin(logits, label) for logits in by_epoch])
    right = margins > 0
    epochs = len(right)
    forgotten = (right[:-1] & ~right[1:]).sum(axis=0)
    learned = right.any(axis=0)
    early = np.exp(evaluation.log_softmax(by_epoch[_early(epochs)]))
    early[np.arange(len(label)), label] -= 1
    return {
        "aum": -margins.mean(axis=0),
        "forgetting": np.where(learned, forgotten, epochs).astype(float),
        "first_learned": np.where(learned, right.argmax(axis=0), epochs).astype(
            float
        ),
        "el2n": np.sqrt((early**2).sum(axis=1)),
    }


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


def _auroc_interval(wrong, value, samples: int = 200) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(samples):
        drawn = rng.integers(0, len(wrong), len(wrong))
        if 0 < wrong[drawn].sum() < len(drawn):
            found.append(metrics.roc_auc_score(wrong[drawn], value[drawn]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
