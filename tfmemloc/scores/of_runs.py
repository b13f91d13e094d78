"""Which examples are memorized, and which labels are wrong?

A network trained with tied dropout gives two predictions for each example: one
with the example's own memorization units on, and one with them off. If only
those units know the given label, then

    tied gap  =  log p(label | own units on)  -  log p(label | off)

is large: the label was learned by heart, and the dropped network's prediction
is the better one. The other scores are known from the literature. They come
from the same training, and in each of them more is more suspicious:

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
- `csl`: the sum of the loss over epochs, and `wrong_event`, the number of
  epochs in which another class was predicted (the cheap estimators that
  Feldman and Zhang's memorization has to beat);
- `sei`: the sum over epochs of the entropy of the prediction, with a minus
  where it is the label (2605.31090); of predictions by epoch alone;
- `grand`: norm of the loss gradient at an early epoch (ibid.), where one was
  saved;
- `tracin`: self-influence, the sum over saved epochs of the learning rate
  (1 where the history has none) times the squared gradient norm (Pruthi et
  al., 2020).

`aum` to `wrong_event` come from what the training steps recorded
(`recording.py`). The scores that need trainings of their own are in
`second_split.py` (`second_split_times`) and `memorization.py`
(`estimate_memorization`).

The combined ranking and the suggestion come from the dropped network's
predictions in the *judging epochs*, which are saved epochs of the second half
of the training, and from what all other examples say about each label
(`left_out`). The prediction of a single epoch is noisy, the mean of several
epochs less so. The generalization units learn a class with many wrong labels
badly, so that the dropped network gives it too little probability on all
examples. Therefore the predictions of each epoch are divided by their mean
share of each class (logit adjustment; Menon et al., 2021).

If the dropped network predicts another label, that does not prove that the
given label is wrong: where the network knows little, it is wrong more often
than the labels are, and wrong labels have influenced it, too. So the suspicion,
the probability that a label is wrong, is that of the other examples alone
(`noise`).

The tied gap is not part of the ranking: if the training ends before all labels
are learned, it is small for those that were not learned, right or wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from tqdm import auto as tqdm

from tfmemloc import (
    configs,
    evaluation,
    gradients,
    graph,
    shares,
    storage,
)
from tfmemloc.data.examples import Examples, require_examples
from tfmemloc.fields import check_fields
from tfmemloc.runs import Run
from tfmemloc.scores.checks import (
    check_classes,
    checked_held_out,
    log_probabilities,
)
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.left_out import predict_left_out
from tfmemloc.scores.of_predictions import values_of
from tfmemloc.scores.of_training import (
    NOT_EARLY,
    early_epoch,
    listed,
    scores_of_recording,
)
from tfmemloc.scores.ranking import ranked
from tfmemloc.training.recording import Recording, recorded_epochs

# Which part of the training judges, by at most so many saved epochs.
_JUDGING, _JUDGING_EPOCHS = 0.5, 10


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """Which scores are taken.

    Attributes:
        gradient_scores: also `grand` and `tracin`, which take a pass of
            per-example gradients over the training data for each saved epoch;
            the ranking does not use them.
        prior: true shares of the classes: `equal`; `labels`, those of the
            given labels; `auto`, estimated where the predictions are sure,
            else those of the labels where the most frequent is over three
            times as frequent as the rarest, else equal.
        batch_size: how many examples go through the network at once.
    """

    gradient_scores: bool = False
    prior: Literal["auto", "equal", "labels"] = "auto"
    batch_size: int = 512

    def __post_init__(self):
        check_fields(self)
        configs.check_range("batch_size", self.batch_size, 1, None)


def score_examples(
    source: Run | Sequence[Run],
    examples: Examples,
    config: ScoreConfig = ScoreConfig(),
    *,
    prior: np.ndarray | None = None,
    extra_scores: Mapping[str, np.ndarray] | None = None,
    progress: bool = True,
) -> ExampleScores:
    """Scores the training examples of a run with tied dropout, or of several.

    Args:
        source: a run of a network with tied layers. If its folder
            `recording` has all epochs (`train` makes one, and so does
            `RecordExamples`), the scores of the course of the training are
            included. Or several runs of the same data, which differ in their
            seed: the ranking uses the judging epochs of all runs, and all other
            scores are averaged over the runs.
        examples: the data of the runs. Those that were not trained on say
            how much the network's opinion counts beside that of all others.
        config: what is scored.
        prior: the true shares of the classes, [classes]; None takes
            `config.prior`.
        extra_scores: further scores by name, [N] each in the order of
            `examples.train`, more is more suspicious.
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
        >>> scores.names[:3]
        ('combined', 'dropped_margin', 'disagreement')
    """
    runs = as_runs(source)
    require_examples(examples)
    train = examples.train
    check_classes(train)
    for run in runs:
        run.check(examples)
    others = examples.take(~examples.is_trained_on)
    judges, held_out, values = [], [], []
    for run in runs:
        model = check_scorable(run)
        found = recorded_scores(run, examples)
        if config.gradient_scores:
            found |= _gradient_scores(run, model, train, progress)
        on, off, other = _predictions(
            run, model, train, others, config.batch_size, progress
        )
        judges.append(off)
        held_out.append(other)
        values.append(values_of(train.label, off, tied=on) | found)
    check_same_scores(runs, values)
    return ranked(
        train,
        np.concatenate(judges),
        (np.concatenate(held_out), others.label),
        config.prior if prior is None else prior,
        mean_scores(values),
        extra_scores,
        left_out=predict_left_out(train, others, progress=progress),
    )


def mean_scores(
    values: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The means over networks of scores with the same names: [N] each."""
    return {
        name: np.mean([each[name] for each in values], axis=0)
        for name in values[0]
    }


def as_runs(source: Run | Sequence[Run]) -> list[Run]:
    """One run, or several, as a list; refuses anything else, and none."""
    runs = [source] if isinstance(source, Run) else source
    is_row = isinstance(runs, list | tuple)
    if not is_row or not all(isinstance(run, Run) for run in runs):
        raise TypeError(
            "`source` expected a Run, or several, which `Run.open(directory)` "
            f"gives. Received: {type(source).__name__}."
        )
    if not runs:
        raise ValueError("`source` expected a run, or several. Received: none.")
    return list(runs)


def _predictions(
    run, model, train: Examples, others: Examples, batch_size, progress
):
    """Log-probabilities, the last epoch being the end of the training.

    [N, classes] of the training examples as trained, [J, N, classes] dropped,
    in the judging epochs, and [J, M, classes] likewise of the examples that
    were not trained on.
    """
    dropped = evaluation.Predictor(graph.with_inference(model, "drop"))
    tied = graph.with_inference(model, "tied")
    judging = _judging_epochs(run.epochs)

    def judged(places) -> dict[str, np.ndarray]:
        found = {}
        for place in tqdm.tqdm(
            places, desc="judging", unit="epoch", disable=not progress
        ):
            run.load_weights(model, judging[place])
            found[str(place)] = np.concatenate(
                [
                    evaluation.predict_logits(
                        dropped, part, batch_size=batch_size
                    )
                    for part in (train, others)
                    if len(part)
                ]
            )
        return found

    found = shares.together(
        "judging", lambda: _key(run, train, judging), len(judging), judged
    )
    rows = np.stack([found[str(place)] for place in range(len(judging))])
    run.load_weights(model, judging[-1])
    on = evaluation.predict_logits(tied, train, batch_size=batch_size)
    off = log_probabilities("dropped", rows[:, : len(train)], train, (3,))
    held_out, _ = checked_held_out(
        (rows[:, len(train) :], others.label), train, off
    )
    return log_probabilities("tied", on, train, (2,)), off, held_out


def check_same_scores(runs: Sequence[Run], values) -> None:
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
    if not graph.tied_layers(model):
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


def recorded_scores(run: Run, examples: Examples) -> dict[str, np.ndarray]:
    """The scores of the run's recording; none where there is none.

    Raises:
        ValueError: the recording is of another training, or of a part of it.
    """
    folder = run.directory / "recording"
    recorded = recorded_epochs(folder)
    if not recorded:
        return {}
    trained = max(
        (line["epoch"] for line in run.history), default=max(run.epochs)
    )
    if recorded != tuple(range(1, trained + 1)):
        raise ValueError(
            f"{folder} holds the epochs {listed(recorded)}, the run those up "
            f"to {trained}. Expected a recording of the whole training. If it "
            "was killed, let the same command finish it; or move the folder "
            "away to score the run without it."
        )
    return scores_of_recording(Recording.open(folder), examples.train)


def _gradient_scores(run, model, train, progress):
    """`grand`, where an early epoch was saved, and `tracin`: [N] each."""
    rates = {line["epoch"]: _rate(line) for line in run.history}
    epochs = [epoch for epoch in run.epochs if epoch > 0]
    wanted = early_epoch(max(epochs)) + 1
    early = min(epochs, key=lambda epoch: abs(epoch - wanted))

    def squared_norms(places) -> dict[str, np.ndarray]:
        engine = gradients.GradientEngine(graph.with_inference(model, "tied"))
        norms = {}
        for place in tqdm.tqdm(
            places, desc="gradients", unit="epoch", disable=not progress
        ):
            run.load_weights(model, epochs[place])
            found = gradients.per_example_norms(engine, train, progress=False)
            norms[str(epochs[place])] = (found**2).sum(axis=1)
        return norms

    squared = shares.together(
        "gradients",
        lambda: _key(run, train, epochs),
        len(epochs),
        squared_norms,
    )
    found = {
        "tracin": sum(
            rates.get(epoch, 1.0) * squared[str(epoch)] for epoch in epochs
        )
    }
    if early <= max(wanted, NOT_EARLY * max(epochs)):
        found["grand"] = np.sqrt(squared[str(early)])
    return found


def _key(run: Run, train: Examples, epochs: Sequence[int]) -> list:
    """What tells a pass over the epochs of a run from other passes."""
    return [storage.digest(run.weights()), train.digest(), list(epochs)]


def _rate(line: Mapping[str, Any]) -> float:
    """The learning rate of a line of the history, ours or Keras's; else 1."""
    return line.get(
        "learning_rate", line.get("logs", {}).get("learning_rate", 1.0)
    )
