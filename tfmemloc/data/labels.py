"""Labels made wrong on purpose, given by the user, or split by a score."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from tfmemloc.checks import check_range, few, is_integer
from tfmemloc.data.examples import Examples
from tfmemloc.layers import masks


def add_label_noise(examples: Examples, rate: float, *, seed: int) -> Examples:
    """Gives exactly int(rate * N) training examples a wrong label.

    The wrong label is uniform over all other classes. The choice of examples
    and of labels is a function of (seed, example id) alone.

    Args:
        examples: all examples; only training examples are relabelled.
        rate: in [0, 1].
        seed: chooses examples and labels.

    Returns:
        New examples; those with a wrong label are the subset `noisy`, all
        others keep theirs.

    Raises:
        ValueError: there is only one class, labels are tokens, or the rate is
            not in [0, 1].

    Example:
        >>> noisy = add_label_noise(examples, 0.5, seed=1)
        >>> len(noisy.of_subset("noisy"))
        40

    Reference: paper, section 3. The authors' code never draws the last of the
    wrong classes; this function does.
    """
    _check_one_label_each(examples)
    check_range("rate", rate, 0.0, 1.0)
    ids = examples.example_id
    is_train = examples.is_trained_on
    count = int(rate * is_train.sum())
    chosen = np.flatnonzero(
        np.isin(
            ids,
            drawn_ids(
                ids[is_train], count, masks.fold_seed(seed, "label noise")
            ),
        )
    )
    if chosen.size and examples.classes < 2:
        raise ValueError(
            f"{examples.name} has {examples.classes} class, so that no label "
            "can be wrong. Expected at least 2 classes, or noise_rate=0."
        )
    bits = masks.hash_bits_numpy(
        masks.fold_seed(seed, "wrong label"), ids[chosen], 1
    )[:, 0]
    # Multiply-and-shift: uniform over 1 .. classes - 1 steps to another class.
    step = 1 + (bits.astype(np.int64) * (examples.classes - 1) >> 32)
    label = examples.true_label.copy()
    label[chosen] = (label[chosen] + step) % examples.classes
    return _relabelled(examples, label)


def hold_out(examples: Examples, ratio: float, *, seed: int) -> Examples:
    """Keeps int(ratio * N) training examples aside, as the subset `heldout`.

    They keep the labels that they have, wrong ones among them, as somebody has
    them who does not know which labels are wrong. The choice is a function of
    (seed, example id) alone.

    Raises:
        ValueError: none would be kept aside, or none trained on.

    Example:
        >>> hold_out(examples, 0.25, seed=0).subsets
        ('clean', 'noisy', 'heldout', 'test')
    """
    if ratio == 0:
        return examples
    train = examples.train
    count = int(ratio * len(train))
    if not 0 < count < len(train):
        raise ValueError(
            f"To hold out {ratio} of the {len(train)} training examples of "
            f"{examples.name} would leave one side empty. Expected another "
            "`heldout`."
        )
    chosen = drawn_ids(
        train.example_id, count, masks.fold_seed(seed, "held out")
    )
    is_chosen = np.isin(examples.example_id, chosen)
    subset = np.where(is_chosen, "heldout", examples.subset)
    return dataclasses.replace(examples, subset=subset)


def random_subset(
    examples: Examples, ratio: float, *, seed: int, complement: bool = False
) -> Examples:
    """Keeps int(ratio * N) training examples, and all that are not trained on.

    The choice is a function of (seed, example id) alone.

    Args:
        examples: all examples.
        ratio: in (0, 1]; 1 keeps all of them.
        seed: decides which.
        complement: keep the other training examples instead.

    Raises:
        ValueError: none would be left.
    """
    if ratio == 1 and not complement:
        return examples
    ids = examples.train.example_id
    kept = drawn_ids(
        ids, int(ratio * len(ids)), masks.fold_seed(seed, "subset")
    )
    if complement:
        kept = np.setdiff1d(ids, kept)
    if not len(kept):
        raise ValueError(
            f"A subset of {ratio} of the {len(ids)} training examples of "
            f"{examples.name}{', its complement,' if complement else ''} would "
            "be empty. Expected another subset_ratio."
        )
    return examples.trained_on(kept)


def drawn_ids(ids: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the ids; which ones is a function of the seed and each id."""
    rank = masks.hash_bits_numpy(seed, ids, 1)
    return ids[np.lexsort((ids, rank[:, 0]))[:count]]


def set_labels(examples: Examples, labels: Mapping[int, int]) -> Examples:
    """Replaces the labels of training examples by given ones.

    Args:
        examples: all examples.
        labels: example id -> label to train on.

    Raises:
        ValueError: an id that is not a training example's, or a label that is
            no class.

    Example:
        >>> first = int(examples.test.example_id[0])
        >>> set_labels(examples, {first: 0})
        Traceback (most recent call last):
        ValueError: digits has no example with id ...
    """
    places, values = _checked_labels(examples, labels)
    label = examples.true_label.copy()
    label[places] = values
    return _relabelled(examples, label)


def _checked_labels(
    examples: Examples, labels: Mapping[int, int]
) -> tuple[list[int], np.ndarray]:
    """Where the examples stand that get a label by id, and their labels."""
    _check_one_label_each(examples)
    strange = [key for key in labels if not is_integer(key)]
    if strange:
        raise ValueError(
            f"{examples.name}: expected labels by ids that are integers. "
            f"Received: dtype {np.array(strange[0]).dtype}, {strange[0]}."
        )
    ids = np.array(list(labels))
    examples.train.of_ids(ids)
    values = np.array(list(labels.values()))
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(
            f"{examples.name}: expected labels that are integers. Received: "
            f"dtype {values.dtype}, {few(values)}."
        )
    place = dict(
        zip(examples.example_id.tolist(), range(len(examples)), strict=True)
    )
    return [place[i] for i in ids.tolist()], values


def correct_labels(examples: Examples, labels: Mapping[int, int]) -> Examples:
    """Replaces labels that turned out to be wrong, for good.

    Where true labels were known they stay, and `noisy` is what still differs
    from them; else the new label is the true one.

    Args:
        examples: all examples.
        labels: id of a training example -> its new label.

    Raises:
        ValueError: an id that is not a training example's, or a label that is
            no class.
    """
    places, values = _checked_labels(examples, labels)
    label = examples.label.copy()
    label[places] = values
    knew = bool((examples.label != examples.true_label).any())
    if knew:
        return _relabelled(examples, label)
    return dataclasses.replace(examples, label=label, true_label=label)


def split_by_score(
    examples: Examples, scores: Mapping[int, float], threshold: float
) -> Examples:
    """Marks training examples with a score below `threshold` as atypical.

    Labels are untouched (paper, section 3: C-score < 0.5).

    Raises:
        ValueError: a training example has no score.

    Example:
        >>> scores = {i: i / 100 for i in examples.train.example_id.tolist()}
        >>> split_by_score(examples, scores, threshold=0.5).subsets
        ('typical', 'atypical', 'test')
    """
    check_range("threshold", threshold, -math.inf, None)
    ids = examples.example_id
    is_train = examples.is_trained_on
    missing = [i for i in ids[is_train].tolist() if i not in scores]
    if missing:
        raise ValueError(
            f"{len(missing)} training examples of {examples.name} have no "
            f"score: ids {few(missing)}. Expected one for each of "
            f"{is_train.sum()}. Received: {len(scores)} scores."
        )
    score = np.array([scores.get(i, np.inf) for i in ids.tolist()], float)
    unknown = is_train & np.isnan(score)
    if unknown.any():
        raise ValueError(
            f"{examples.name}: expected a score of each training example. "
            f"Received: NaN for ids {few(ids[unknown])}."
        )
    subset = np.where(score < threshold, "atypical", "typical")
    subset = np.where(is_train, subset, examples.subset)
    return dataclasses.replace(examples, subset=subset)


def read_pairs(path: str, column: str, kind: type) -> dict[int, float]:
    """Reads a `.csv` of `example_id,<column>` with that header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header or a line is not as expected.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header != ["example_id", column]:
            raise ValueError(
                f"{path} expected the header 'example_id,{column}'. Received: "
                f"{','.join(header)!r}."
            )
        pairs = {}
        for line, row in enumerate(reader, start=2):
            try:
                example_id, value = int(row[0]), kind(row[1])
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}, line {line}: expected an integer id and a "
                    f"{kind.__name__}. Received: {','.join(row)!r}."
                ) from None
            if example_id in pairs:
                raise ValueError(
                    f"{path}, line {line}: id {example_id} occurs twice. "
                    "Expected one line for each example."
                )
            pairs[example_id] = value
    return pairs


def _relabelled(examples: Examples, label: np.ndarray) -> Examples:
    """Replaces the labels; the subset `noisy` is exactly the wrong labels."""
    subset = np.where(examples.subset == "noisy", "clean", examples.subset)
    subset = np.where(label != examples.true_label, "noisy", subset)
    subset = np.where(examples.is_trained_on, subset, examples.subset)
    return dataclasses.replace(examples, label=label, subset=subset)


def _check_one_label_each(examples: Examples) -> None:
    if examples.label.ndim > 1:
        raise ValueError(
            f"{examples.name} has a label for each position. Expected one for "
            "each example, to be made wrong; use noise_rate=0."
        )
