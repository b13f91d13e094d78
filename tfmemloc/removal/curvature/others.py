"""What all other examples say of each training example's class.

They never saw its label (`tfmemloc.scores.left_out`): so they can judge a
network that did, whether to believe an example in a refit or, where no examples
were held out, how much to cut.
"""

from __future__ import annotations

import numpy as np

from tfmemloc import shares
from tfmemloc.data.examples import Examples
from tfmemloc.scores.left_out import predict_left_out
from tfmemloc.scores.noise import fit_noise

# Standard errors by which they must surpass the most frequent class.
_CLEARLY = 3


def know_more_than_shares(said: np.ndarray, label: np.ndarray) -> bool:
    """Whether all others know more than which class is the most frequent.

    Args:
        said: [N, classes] log-probabilities.
        label: [N] as given.
    """
    right = (said.argmax(axis=1) == label).mean()
    most = np.bincount(label).max() / len(label)
    return bool(right > most + _CLEARLY * np.sqrt(0.25 / len(label)))


def said_by_others(
    examples: Examples, seed: int, *, progress: bool = False
) -> np.ndarray:
    """Asks all other examples about each training example.

    Args:
        examples: with labels [N].
        seed: of what is drawn for it.
        progress: show a progress bar.

    Returns:
        Log-probabilities [N, classes]; the example's own label had no say.
    """

    def said() -> dict[str, np.ndarray]:
        logits = _left_out(examples, seed, progress)
        noise = fit_noise(logits, examples.train.label)
        return {"said": noise.log_chance(logits)}

    return shares.once("others", lambda: [examples.digest(), seed], said)[
        "said"
    ]


def share_wrong(examples: Examples, seed: int) -> float:
    """How many of the training labels are wrong, by all other examples."""
    logits, label = _left_out(examples, seed), examples.train.label
    return float(fit_noise(logits, label).suspicion(logits, label).mean())


def _left_out(
    examples: Examples, seed: int, progress: bool = False
) -> np.ndarray:
    train, none = examples.train, examples.take(np.arange(0))
    return predict_left_out(train, none, seed=seed, progress=progress).train
