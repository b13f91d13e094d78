"""Labels judged by the other examples alone, without any network."""

from __future__ import annotations

import numpy as np

from tfmemloc import losses
from tfmemloc.data.examples import Examples, require_examples
from tfmemloc.scores.checks import check_classes
from tfmemloc.scores.example_scores import ExampleScores
from tfmemloc.scores.left_out import predict_left_out
from tfmemloc.scores.ranking import ranked


def score_without_network(
    examples: Examples, *, seed: int = 0, progress: bool = False
) -> ExampleScores:
    """Scores the labels by what all other examples say about each of them.

    Nothing is trained: see `tfmemloc.scores.left_out`. Of 5,000 small pictures
    it takes a quarter of a minute on one CPU core. A trained network knows
    more where it is often right, and then ranks better together with this.

    Args:
        examples: with labels [N].
        seed: of the patches that pictures are described by.
        progress: show a progress bar.

    Returns:
        A row for each training example.

    Raises:
        ValueError: labels are next tokens, or of one class only.

    Example:
        >>> scores = score_without_network(examples)
        >>> scores.names
        ('combined', 'left_out')
    """
    require_examples(examples)
    train = examples.train
    check_classes(train)
    left_out = predict_left_out(
        train, examples.take(np.arange(0)), seed=seed, progress=progress
    )
    judges = losses.log_softmax(left_out.train)[np.newaxis]
    return ranked(train, judges, None, "auto", {}, None, left_out=left_out)
