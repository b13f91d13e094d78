"""Scores of the course of a training: when and how well labels were learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmemloc import losses
from tfmemloc.data.examples import Examples
from tfmemloc.training.recording import Recording

# The early epoch of EL2N and GraNd, as a fraction of the training, and the
# latest that may still stand for it.
_EARLY, NOT_EARLY = 0.1, 0.5


def scores_of_recording(
    recording: Recording, examples: Examples
) -> dict[str, np.ndarray]:
    """Scores of a recording: `aum`, `csl`, `el2n` and others.

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
        >>> recording = Recording.open("runs/demo/example_tied/recording")
        >>> sorted(scores_of_recording(recording, examples.train))[:3]
        ['aum', 'csl', 'el2n']
    """
    epochs = recording.epochs
    if epochs != tuple(range(1, len(epochs) + 1)):
        raise ValueError(
            f"The recording holds the epochs {listed(epochs)}. Expected all "
            "from the first to the last: when an example was learned is not "
            "known otherwise."
        )
    found = recording.of(examples)
    return dynamics(found.margin, found.error, found.loss)


def dynamics(
    margin: np.ndarray, error: np.ndarray, loss: np.ndarray
) -> dict[str, np.ndarray]:
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
        "el2n": _filled(error)[early_epoch(epochs)].astype(float),
        "csl": _filled(loss).sum(axis=0, dtype=np.float64),
        "wrong_event": (~right).sum(axis=0).astype(float),
    }


def signed_entropy(by_epoch: np.ndarray, label: np.ndarray) -> np.ndarray:
    """`sei`: entropies over epochs, minus where the label is predicted: [N].

    Args:
        by_epoch: [E, N, classes] log-probabilities.
        label: [N].
    """
    entropy = -(np.exp(by_epoch) * by_epoch).sum(axis=2)
    is_label = by_epoch.argmax(axis=2) == label
    return np.where(is_label, -entropy, entropy).sum(axis=0)


def _filled(values: np.ndarray) -> np.ndarray:
    """[E, N] with NaN replaced by the last number before, else the first."""
    seen = ~np.isnan(values)
    epoch = np.arange(len(values))[:, np.newaxis]
    before = np.maximum.accumulate(np.where(seen, epoch, -1), axis=0)
    source = np.where(before >= 0, before, seen.argmax(axis=0))
    return np.take_along_axis(values, source, axis=0)


def errors_of(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """|| softmax - one-hot || : [N]."""
    wrong = np.exp(losses.log_softmax(logits))
    wrong[np.arange(len(label)), label] -= 1
    return np.sqrt((wrong**2).sum(axis=1))


def early_epoch(epochs: int) -> int:
    """The place of the early epoch among the saved ones."""
    return max(0, round(_EARLY * epochs) - 1)


def margins(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The label's logit less the best other one: [N]."""
    rows = np.arange(len(label))
    others = logits.astype(np.float64)
    others[rows, label] = -np.inf
    return logits[rows, label] - others.max(axis=1)


def listed(epochs: Sequence[int]) -> str:
    """Epochs as text; the middle of many is left out."""
    shown = [str(epoch) for epoch in epochs]
    return ", ".join(
        shown if len(shown) < 8 else [*shown[:3], "...", shown[-1]]
    )
