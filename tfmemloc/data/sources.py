"""Loading a data set by its name.

`digits`, `stdlib` and other text, `tinymem`, an `.npz` file, a folder of `.npy`
files, or the name of a TFDS set.
"""

from __future__ import annotations

import difflib
import pathlib
import warnings
import zipfile
from collections.abc import Mapping

import numpy as np

from tfmemloc import storage
from tfmemloc.configs import DataConfig, is_own
from tfmemloc.data import text, tinymem
from tfmemloc.data.arrays import from_arrays
from tfmemloc.data.examples import Examples
from tfmemloc.data.labels import (
    add_label_noise,
    correct_labels,
    hold_out,
    random_subset,
    read_pairs,
    set_labels,
    split_by_score,
)
from tfmemloc.data.tfds_sets import checked_count, load_tfds
from tfmemloc.presets import is_text

_DIGITS_SPLIT_SEED = 0
_DIGITS_TEST = 360
# Names of arrays of one's own, beside several inputs x_train_<input>.
_INPUTS = ("x_train", "x_test")
_READ = (
    *("y_train", "y_test", "class_names", "true_label"),
    *("example_id", "subset", "group"),
)


def load(config: DataConfig, *, download: bool = False) -> Examples:
    """Loads a data set and applies the label noise or the split by score.

    Args:
        config: what to load.
        download: let TFDS fetch a data set that is not prepared yet.

    Returns:
        Training and test examples together.

    Raises:
        FileNotFoundError: the data set is not prepared and `download` is
            False, or a file does not exist; the message says what to do.
        ValueError: the data or the files do not fit together.

    Example:
        >>> examples = load(DataConfig(dataset="digits", noise_rate=0.1))
        >>> len(examples.of_subset("noisy"))
        143
    """
    if not isinstance(config, DataConfig):
        raise ValueError(
            f"Expected a DataConfig, such as DataConfig({str(config)!r}). "
            f"Received: {type(config).__name__}."
        )
    if is_text(config.dataset):
        return text.load_text(config)
    if config.dataset == tinymem.NAME:
        return tinymem.load_tinymem(config)
    if config.removable:
        raise ValueError(
            "`removable` names sources of text. Expected none for the data "
            f"set {config.dataset!r}; where examples have a `tie_id`, those "
            "that share one are removed as one. Received: "
            f"removable={config.removable!r}."
        )
    if config.dataset == "digits":
        examples = _load_digits()
    elif config.dataset.endswith(".npz"):
        examples = _load_npz(pathlib.Path(config.dataset))
    elif is_own(config.dataset):
        examples = _load_folder(pathlib.Path(config.dataset))
    else:
        examples = load_tfds(config, download)
    examples = _first(examples, config.train_examples, config.test_examples)
    if config.label_file:
        corrections = read_pairs(config.label_file, "label", int)
        examples = correct_labels(examples, corrections)
    examples = _with_subsets(examples, config)
    examples = hold_out(examples, config.heldout, seed=config.heldout_seed)
    return random_subset(
        examples,
        config.subset_ratio,
        seed=config.subset_seed,
        complement=config.subset_complement,
    )


def _with_subsets(examples: Examples, config: DataConfig) -> Examples:
    """The examples with the labels and subsets of a config."""
    if config.score_file:
        scores = read_pairs(config.score_file, "score", float)
        return split_by_score(examples, scores, config.score_threshold)
    if config.noise_file:
        return set_labels(examples, read_pairs(config.noise_file, "label", int))
    if config.noise_rate == 0:  # Labels and subsets stay as they were given.
        return examples
    return add_label_noise(examples, config.noise_rate, seed=config.noise_seed)


def _load_digits() -> Examples:
    """scikit-learn's 1,797 digits of 8x8 pixels, always split the same way."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(
        len(digits.images)
    )
    subset = np.full(len(order), "clean")
    subset[order[:_DIGITS_TEST]] = "test"
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Examples(
        inputs={"image": image},
        label=digits.target,
        true_label=digits.target,
        example_id=np.arange(len(order)),
        subset=subset,
        classes=10,
        name="digits",
    )


def _load_npz(path: pathlib.Path) -> Examples:
    return _from_named(_read_npz(path), path)


def _load_folder(path: pathlib.Path) -> Examples:
    """Arrays as `.npy` files, whose inputs stay on disk."""
    arrays = {
        file.stem: np.load(file, mmap_mode="r", allow_pickle=False)
        for file in sorted(path.glob("*.npy"))
    }
    return _from_named(arrays, path)


def _from_named(arrays: Mapping, path: pathlib.Path) -> Examples:
    """Examples from arrays called x_train, y_train, x_test, y_test.

    Several inputs are called x_train_<input>.
    """
    x_train, x_test = (
        _inputs_of("x_train", arrays),
        _inputs_of("x_test", arrays),
    )
    has_test = x_test is not None or "y_test" in arrays
    found = {"x_train": x_train, "y_train": arrays.get("y_train")}
    if has_test:
        found |= {"x_test": x_test, "y_test": arrays.get("y_test")}
    missing = [
        name
        for name, array in found.items()
        # Without labels the next token is the label.
        if array is None and not (name[0] == "y" and _are_tokens(x_train))
    ]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}. Expected the arrays x_train, "
            "y_train and, where there are test examples, x_test, y_test. "
            f"Received: {', '.join(arrays) or 'no array'}."
        )
    _warn_of_unread(arrays, path)
    class_names = [str(name) for name in arrays.get("class_names", ())]
    return from_arrays(
        *found.values(),
        name=path.name,
        classes=_named_classes(class_names, arrays, path),
        class_names=class_names,
        true_label=arrays.get("true_label"),
        ids=arrays.get("example_id"),
        subset=arrays.get("subset"),
        group=arrays.get("group"),
    )


def _named_classes(names, arrays: Mapping, path: pathlib.Path) -> int | None:
    """How many classes there are, if they have names: enough for the labels."""
    if not names:
        return None
    labels = [arrays[y] for y in ("y_train", "y_test") if y in arrays]
    largest = max((int(np.max(y)) for y in labels if len(y)), default=0)
    if largest >= len(names):
        raise ValueError(
            f"{path} has {len(names)} class_names, and labels up to {largest}. "
            f"Expected a name for each of {largest + 1} classes."
        )
    return len(names)


def _warn_of_unread(arrays: Mapping, path: pathlib.Path) -> None:
    """Warns of arrays that nothing reads; a name may be misspelt."""
    known = [*_READ, *_INPUTS]
    unread = [
        name
        for name in arrays
        if name not in known
        # Several inputs: x_train_<input>, where there is no x_train.
        and not any(
            name.startswith(f"{part}_") and part not in arrays
            for part in _INPUTS
        )
    ]
    if not unread:
        return
    meant = difflib.get_close_matches(unread[0], known, n=1)
    warnings.warn(
        f"{path.name} holds {', '.join(unread)}, which nothing reads. Expected "
        f"{', '.join(_INPUTS)} and some of {', '.join(_READ)}."
        + (f" Is {unread[0]} meant to be {meant[0]}?" if meant else ""),
        stacklevel=5,
    )


def _are_tokens(x) -> bool:
    """Whether it is one array of integers [N, time]."""
    return isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "iu"


def _inputs_of(part: str, arrays: Mapping):
    """The array `<part>`, or a dict of the arrays `<part>_<input>`, or None."""
    if part in arrays:
        return arrays[part]
    start = f"{part}_"
    named = {
        name.removeprefix(start): array
        for name, array in arrays.items()
        if name.startswith(start)
    }
    return named or None


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return storage.read_arrays(path)
    except storage.DamagedFileError as error:
        if "allow_pickle" not in str(error.__cause__):
            raise
        raise ValueError(
            f"{path} holds an array of Python objects, which is a pickle, and "
            "to read one may run any code. Expected numbers and strings. Save "
            "it anew, for instance with y_train=np.array(labels, dtype=int)."
        ) from None


def count_train(path: str) -> int:
    """The number of training examples in an own file or folder."""
    if path.endswith(".npz"):
        return int(_load_npz(pathlib.Path(path)).is_trained_on.sum())
    return int(_load_folder(pathlib.Path(path)).is_trained_on.sum())


def count_labels(path: str) -> int | None:
    """How many labels to train on an own file or folder has, at no cost.

    None where none are found: reading it says what is wrong.
    """
    try:
        if not path.endswith(".npz"):
            file = pathlib.Path(path) / "y_train.npy"
            return len(np.load(file, mmap_mode="r", allow_pickle=False))
        with np.load(path, allow_pickle=False) as arrays:
            return len(arrays["y_train"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def _first(examples: Examples, train: int | None, test: int | None) -> Examples:
    """Keeps the first examples of each part, in the data set's order."""
    keep = np.zeros(len(examples), bool)
    is_test = examples.subset == "test"
    is_other = ~is_test & ~examples.is_trained_on
    for part, wanted, members in (
        ("train", train, examples.is_trained_on),
        ("test", test, is_test),
        ("held-out", None, is_other),
    ):
        places = np.flatnonzero(members)
        count = len(places) if wanted is None else wanted
        keep[
            places[: checked_count(examples.name, part, count, len(places))]
        ] = True
    return examples if keep.all() else examples.take(keep)
