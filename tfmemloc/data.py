"""Examples that carry their ids, and wrong labels on purpose.

Everything per example is keyed on the *example id*, which is a property of the
example and not of its place: the index in the data set's pinned reading order
(test examples follow the training ones). Slicing, shuffling and relabelling
keep ids. All randomness is a function of (seed, example id) or (seed, step):

- label noise takes the `int(rate * N)` training examples with the smallest
  hash of (seed, id), and draws the wrong label from the other classes by
  another hash (paper, section 3: 10 % of the labels, uniform). A larger rate
  therefore contains the smaller one.
- the order and the augmentation of batches: see `batches.py`.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from tfmemloc import masks, storage
from tfmemloc.configs import DataConfig
from tfmemloc.results import OfSubsets

_DIGITS_SPLIT_SEED = 0
_DIGITS_TEST = 360


@dataclasses.dataclass(frozen=True, eq=False)
class Examples(OfSubsets):
    """Examples of one data set, training and test.

    Attributes:
        image: [N, height, width, channels]; uint8, or floats in [-1, 1].
        label: [N] int64, as trained on.
        true_label: [N] int64, as the data set gives it.
        example_id: [N] int64, unique, not negative.
        subset: [N] strings: `clean`, `noisy` (or `typical`, `atypical`) for
            training examples, and `test`.
        classes: the number of classes.
        name: of the data set, for messages.
        class_names: one for each class, for people; may be empty.
    """

    image: np.ndarray
    label: np.ndarray
    true_label: np.ndarray
    example_id: np.ndarray
    subset: np.ndarray
    classes: int
    name: str = "examples"
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        _check_images(self.image, self.name)
        for field, dtype in (
            ("label", np.int64),
            ("true_label", np.int64),
            ("example_id", np.int64),
            ("subset", "U8"),
        ):
            array = _checked_column(self, field, dtype)
            object.__setattr__(self, field, array)
        image = np.asarray(self.image).view()
        image.flags.writeable = False
        object.__setattr__(self, "image", image)
        _check_labels(self)
        _check_unique_ids(self)
        if len(self.class_names) not in (0, self.classes):
            raise ValueError(
                f"{self.name}: expected {self.classes} class names, or none. "
                f"Received: {len(self.class_names)}."
            )

    def class_name(self, label: int) -> str:
        """The name of a class; its number where it has none."""
        return self.class_names[label] if self.class_names else str(label)

    def __len__(self) -> int:
        return len(self.example_id)

    @property
    def subsets(self) -> tuple[str, ...]:
        """The names of the subsets that occur, training first."""
        order = ("clean", "noisy", "typical", "atypical", "test")
        return tuple(name for name in order if np.any(self.subset == name))

    @property
    def train(self) -> Examples:
        """The examples that are trained on."""
        return self.take(self.subset != "test")

    @property
    def test(self) -> Examples:
        """The test examples."""
        return self.take(self.subset == "test")

    def of_subset(self, name: str) -> Examples:
        """The examples of one subset.

        Raises:
            ValueError: there are none.
        """
        if name not in self.subsets:
            raise ValueError(
                f"{self.name} has no subset {name!r}. Expected one of "
                f"{', '.join(map(repr, self.subsets))}."
            )
        return self.take(self.subset == name)

    def of_ids(self, example_ids: Sequence[int]) -> Examples:
        """The examples with these ids, in the order given.

        Raises:
            ValueError: an id does not occur.
        """
        wanted = np.asarray(example_ids, np.int64)
        place, is_missing = places_of(self.example_id, wanted)
        if is_missing.any():
            raise ValueError(
                f"{self.name} has no example with id "
                f"{_few(wanted[is_missing])}. Expected "
                f"ids from {self.example_id.min()} to {self.example_id.max()}."
            )
        return self.take(place)

    def trained_on(self, example_ids: np.ndarray) -> Examples:
        """The training examples with these ids, and all test examples."""
        kept = np.isin(self.example_id, example_ids)
        return self.take(kept | (self.subset == "test"))

    def take(self, index: np.ndarray) -> Examples:
        """The examples at a boolean or integer index; ids stay."""
        return dataclasses.replace(
            self,
            **{field: getattr(self, field)[index] for field in _COLUMNS},
        )

    def fingerprint(self) -> dict[str, dict[str, str | int]]:
        """Checksums of ids, labels and pixels, for training and test."""
        result = {}
        for name, part in (("train", self.train), ("test", self.test)):
            part = part.take(np.argsort(part.example_id))
            result[name] = {"examples": len(part)} | {
                field: _checksum(getattr(part, field))
                for field in ("example_id", "label", "true_label", "image")
            }
        return result


_COLUMNS = ("image", "label", "true_label", "example_id", "subset")


def places_of(
    ids: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where in `ids` each of the wanted ones is, and which are not there.

    Args:
        ids: [N] integers, unique, in any order.
        wanted: [M] integers.

    Returns:
        ([M] places, of no meaning where the id is missing; [M] bool, missing).
    """
    order = np.argsort(ids)
    place = np.searchsorted(ids, wanted, sorter=order)
    place = order[np.minimum(place, len(ids) - 1)]
    return place, ids[place] != wanted


def check_fingerprint(examples: Examples, expected: Mapping) -> None:
    """Refuses examples other than those with which a run was started.

    Raises:
        ValueError: says which set and what in it differs.
    """
    found = examples.fingerprint()
    wrong = [
        f"{part} {what} (expected {expected[part].get(what)}, received {value})"
        for part in found
        for what, value in found[part].items()
        if expected.get(part, {}).get(what) != value
    ]
    if wrong:
        raise ValueError(
            f"{examples.name} is not the data this run was made with; these "
            f"differ: {'; '.join(wrong)}. Use the same data set, version, "
            "number of examples and noise as then, or another run directory."
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
    if config.dataset == "digits":
        examples = _load_digits()
    elif config.dataset.endswith(".npz"):
        examples = _load_npz(pathlib.Path(config.dataset))
    else:
        examples = _load_tfds(config, download)
    examples = _first(examples, config.train_examples, config.test_examples)
    examples = _with_subsets(examples, config)
    return random_subset(examples, config.subset_ratio, seed=config.subset_seed)


def _with_subsets(examples: Examples, config: DataConfig) -> Examples:
    """The examples with the labels and subsets of a config."""
    if config.score_file:
        scores = read_pairs(config.score_file, "score", float)
        return split_by_score(examples, scores, config.score_threshold)
    if config.noise_file:
        return set_labels(examples, read_pairs(config.noise_file, "label", int))
    return add_label_noise(examples, config.noise_rate, seed=config.noise_seed)


def from_arrays(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray | None = None,
    y_test: np.ndarray | None = None,
    *,
    name: str = "examples",
    classes: int | None = None,
    class_names: Sequence[str] = (),
    first_test_id: int | None = None,
) -> Examples:
    """Examples from arrays as Keras ships its data sets; ids are indices.

    Args:
        x_train: [N, height, width] or [N, height, width, channels]; uint8, or
            floats in [-1, 1].
        y_train: [N] or [N, 1] integers from 0.
        x_test: as `x_train`; None where there are no test examples.
        y_test: as `y_train`.
        name: of the data set, for messages.
        classes: the number of classes; None takes the largest label plus one.
        class_names: one for each class, for people; may be empty.
        first_test_id: id of the first test example; None goes on counting
            after the training examples.

    Raises:
        ValueError: shapes or dtypes are not these; says of which array.
    """
    _check_split(x_train, y_train, "train", name)
    if x_test is None and y_test is None:
        x_test, y_test = x_train[:0], y_train[:0]
    else:
        _check_split(x_test, y_test, "test", name)
    if np.shape(x_train)[1:] != np.shape(x_test)[1:]:
        raise ValueError(
            f"{name}: expected training and test images of one size. "
            f"Received: {np.shape(x_train)[1:]} and {np.shape(x_test)[1:]}."
        )
    image = np.concatenate([_with_channels(x) for x in (x_train, x_test)])
    label = np.concatenate(
        [np.asarray(y).reshape(-1) for y in (y_train, y_test)]
    )
    subset = np.repeat(["clean", "test"], [len(x_train), len(x_test)])
    example_id = np.arange(len(image))
    if first_test_id is not None:
        example_id[len(x_train) :] += first_test_id - len(x_train)
    return Examples(
        image=image,
        label=label,
        true_label=label,
        example_id=example_id,
        subset=subset,
        classes=int(label.max()) + 1 if classes is None else classes,
        name=name,
        class_names=tuple(class_names),
    )


def add_label_noise(examples: Examples, rate: float, *, seed: int) -> Examples:
    """Gives exactly int(rate * N) training examples a wrong label.

    The wrong label is uniform over all other classes. Which examples and which
    labels is a function of (seed, example id) alone.

    Args:
        examples: their training part is relabelled.
        rate: in [0, 1].
        seed: chooses examples and labels.

    Returns:
        New examples; those with a wrong label are the subset `noisy`.

    Reference: paper, section 3; the authors' draw never yields the last wrong
    class, this one does.
    """
    ids = examples.example_id
    is_train = examples.subset != "test"
    rank = masks.hash_bits_numpy(masks.fold_seed(seed, "label noise"), ids, 1)
    candidates = np.flatnonzero(is_train)
    order = np.lexsort((ids[candidates], rank[candidates, 0]))
    chosen = candidates[order[: int(rate * len(candidates))]]
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


def random_subset(examples: Examples, ratio: float, *, seed: int) -> Examples:
    """Leaves int(ratio * N) training examples, and all test examples.

    Which ones is a function of (seed, example id) alone.

    Raises:
        ValueError: none would be left.
    """
    if ratio == 1:
        return examples
    train = examples.train
    count = int(ratio * len(train))
    if not count:
        raise ValueError(
            f"A subset of {ratio} of the {len(train)} training examples of "
            f"{examples.name} would be empty. Expected a larger subset_ratio."
        )
    ids = train.example_id
    rank = masks.hash_bits_numpy(masks.fold_seed(seed, "subset"), ids, 1)
    return examples.trained_on(ids[np.lexsort((ids, rank[:, 0]))[:count]])


def set_labels(examples: Examples, labels: Mapping[int, int]) -> Examples:
    """Replaces the labels of training examples by given ones.

    Args:
        examples: all examples.
        labels: example id -> label to train on.

    Raises:
        ValueError: an id that is not a training example's, or a label that is
            no class.
    """
    ids = np.array(list(labels), np.int64)
    examples.train.of_ids(ids)
    place = dict(
        zip(examples.example_id.tolist(), range(len(examples)), strict=True)
    )
    label = examples.true_label.copy()
    label[[place[i] for i in ids.tolist()]] = list(labels.values())
    return _relabelled(examples, label)


def split_by_score(
    examples: Examples, scores: Mapping[int, float], threshold: float
) -> Examples:
    """Calls training examples with a score below `threshold` atypical.

    Labels are untouched (paper, section 3: C-score < 0.5).

    Raises:
        ValueError: a training example has no score.
    """
    ids = examples.example_id
    is_train = examples.subset != "test"
    missing = [i for i in ids[is_train].tolist() if i not in scores]
    if missing:
        raise ValueError(
            f"{len(missing)} training examples of {examples.name} have no "
            f"score: ids {_few(missing)}. Expected one for each of "
            f"{is_train.sum()}."
        )
    score = np.array([scores.get(i, np.inf) for i in ids.tolist()])
    subset = np.where(score < threshold, "atypical", "typical")
    subset = np.where(is_train, subset, "test")
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


def stable_ids(keys: Sequence[str]) -> np.ndarray:
    """Turns string keys (file names, TFDS ids) into int64 ids for ever.

    The id is the first 63 bits of the key's SHA-256.

    Raises:
        ValueError: two keys are equal, or (at a chance of N**2 / 2**64) two
            different keys have the same id; both are named.
    """
    seen: dict[int, str] = {}
    for key in keys:
        digest = hashlib.sha256(str(key).encode("utf-8")).digest()
        example_id = int.from_bytes(digest[:8], "big") >> 1
        if example_id in seen:
            raise ValueError(
                f"Keys {seen[example_id]!r} and {key!r} collide: both have id "
                f"{example_id}. Expected a different key for each example."
            )
        seen[example_id] = key
    return np.fromiter(seen, np.int64, len(seen))


def _load_digits() -> Examples:
    """scikit-learn's 1,797 digits of 8x8 pixels, always split alike."""
    from sklearn import datasets

    digits = datasets.load_digits()
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(
        len(digits.images)
    )
    subset = np.full(len(order), "clean", "U8")
    subset[order[:_DIGITS_TEST]] = "test"
    image = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Examples(
        image=image,
        label=digits.target,
        true_label=digits.target,
        example_id=np.arange(len(order)),
        subset=subset,
        classes=10,
        name="digits",
    )


def _load_npz(path: pathlib.Path) -> Examples:
    arrays = _read_npz(path)
    names = ("x_train", "y_train", "x_test", "y_test")
    if not {"x_test", "y_test"} & set(arrays):
        names = names[:2]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}. Expected the arrays x_train, "
            "y_train and, where there are test examples, x_test, y_test. "
            f"Received: {', '.join(arrays)}."
        )
    class_names = [str(name) for name in arrays.get("class_names", ())]
    return from_arrays(
        *(arrays[name] for name in names),
        name=path.name,
        classes=len(class_names) or None,
        class_names=class_names,
    )


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
    """The number of training examples in an `.npz` file."""
    return len(_load_npz(pathlib.Path(path)).train)


def _load_tfds(config: DataConfig, download: bool) -> Examples:
    """Reads a TFDS image-classification set in its pinned order on disk."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    name = config.dataset
    try:
        builder = tfds.builder(name, data_dir=config.data_dir)
    # A ValueError is a name that TFDS cannot parse.
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise ValueError(
            f"There is no data set {name!r}. Expected 'digits', the name of a "
            "TFDS image-classification set, or a path that ends in .npz."
        ) from error
    _prepare_tfds(builder, download)
    keys = builder.info.supervised_keys
    if keys is None or len(keys) != 2 or "test" not in builder.info.splits:
        raise ValueError(
            f"TFDS set {name!r} is not for image classification with a test "
            f"split. Received: supervised keys {keys}, splits "
            f"{', '.join(builder.info.splits)}."
        )
    try:
        train, test = (
            _read_split(builder, split, keys, count)
            for split, count in (
                ("train", config.train_examples),
                ("test", config.test_examples),
            )
        )
    except tf.errors.OpError as error:
        raise storage.DamagedFileError(
            f"TFDS set {name!r} in {builder.data_path} cannot be read: "
            f"{error.message} Its preparation may have been interrupted. "
            "Delete that folder and prepare it again, for instance with "
            "--download."
        ) from error
    return from_arrays(
        *train,
        *test,
        name=name,
        classes=builder.info.features[keys[1]].num_classes,
        class_names=builder.info.features[keys[1]].names,
        first_test_id=builder.info.splits["train"].num_examples,
    )


def _prepare_tfds(builder, download: bool) -> None:
    if builder.data_path.exists():
        return
    if download:
        builder.download_and_prepare()
        return
    sources = builder.url_infos
    size = sum(info.size or 0 for info in sources.values())
    raise FileNotFoundError(
        f"TFDS set {builder.name!r} is not prepared in {builder.data_path}. "
        "Nothing was downloaded. Pass --download to fetch "
        + (f"{size / 2**20:.0f} MiB" if size else "a file of unknown size")
        + f" from {', '.join(sources) or 'its home page'}, or --data_dir "
        "with a folder where the set is prepared."
    )


def _read_split(
    builder, split: str, keys: tuple[str, str], count: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of (the first `count` of) a split."""
    import tensorflow_datasets as tfds

    total = builder.info.splits[split].num_examples
    if count is not None:
        split = f"{split}[:{_checked_count(builder.name, split, count, total)}]"
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(
            interleave_cycle_length=1, try_autocache=False
        ),
    ).map(lambda record: (record[keys[0]], record[keys[1]]))
    images, labels = zip(*dataset.batch(1000).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _first(examples: Examples, train: int | None, test: int | None) -> Examples:
    """Keeps the first examples of each part, in the data set's order."""
    keep = np.zeros(len(examples), bool)
    is_test = examples.subset == "test"
    for part, wanted, mine in (
        ("train", train, ~is_test),
        ("test", test, is_test),
    ):
        places = np.flatnonzero(mine)
        count = len(places) if wanted is None else wanted
        keep[
            places[: _checked_count(examples.name, part, count, len(places))]
        ] = True
    return examples if keep.all() else examples.take(keep)


def _checked_count(name: str, part: str, count: int, total: int) -> int:
    if count > total:
        raise ValueError(
            f"{name} has {total} {part} examples. Expected to use at most so "
            f"many. Received: {part}_examples={count}."
        )
    return count


def _relabelled(examples: Examples, label: np.ndarray) -> Examples:
    is_noisy = label != examples.true_label
    subset = np.where(is_noisy, "noisy", "clean")
    subset = np.where(examples.subset == "test", "test", subset)
    return dataclasses.replace(examples, label=label, subset=subset)


def _check_split(x: np.ndarray, y: np.ndarray, split: str, name: str) -> None:
    """Refuses arrays that are no images or no labels."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(
            f"{name}: x_{split} expected images [N, height, width] or [N, "
            f"height, width, channels], at least one. Received: shape "
            f"{x.shape}."
        )
    if y.shape not in ((len(x),), (len(x), 1)) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: y_{split} expected {len(x)} integers, one for each "
            f"image. Received: shape {y.shape}, dtype {y.dtype}. "
            "np.unique(y, return_inverse=True)[1] makes integers of names."
        )


def _with_channels(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    return images[..., np.newaxis] if images.ndim == 3 else images


def _check_images(images: np.ndarray, name: str) -> None:
    if np.ndim(images) != 4:
        raise ValueError(
            f"{name}: expected images of shape [N, height, width, channels]. "
            f"Received: shape {np.shape(images)}."
        )
    if images.dtype == np.uint8:
        return
    is_float = np.issubdtype(images.dtype, np.floating)
    if not is_float or (images.size and not np.abs(images).max() <= 1):
        raise ValueError(
            f"{name}: expected images of dtype uint8, or floats in [-1, 1]. "
            f"Received: dtype {images.dtype}"
            + (
                f", values from {images.min()} to {images.max()}."
                if is_float
                else "."
            )
        )


def _checked_column(examples: Examples, field: str, dtype) -> np.ndarray:
    array = np.asarray(getattr(examples, field))
    if array.shape != (len(examples.image),):
        raise ValueError(
            f"{examples.name}: expected {field} of shape "
            f"({len(examples.image)},), one for each image. Received: shape "
            f"{array.shape}."
        )
    is_text = dtype == "U8"
    if not is_text and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{examples.name}: expected {field} to be integers. Received: "
            f"dtype {array.dtype}."
        )
    array = array.astype(dtype)
    array.flags.writeable = False
    return array


def _check_labels(examples: Examples) -> None:
    for field in ("label", "true_label"):
        label = getattr(examples, field)
        wrong = label[(label < 0) | (label >= examples.classes)]
        if wrong.size:
            raise ValueError(
                f"{examples.name}: expected {field} from 0 to "
                f"{examples.classes - 1}. Received: {_few(np.unique(wrong))}."
            )


def _check_unique_ids(examples: Examples) -> None:
    ids = examples.example_id
    if ids.size and ids.min() < 0:
        raise ValueError(
            f"{examples.name}: example ids must not be negative. Received: "
            f"{ids.min()}."
        )
    values, counts = np.unique(ids, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"{examples.name}: expected each example id once. Received more "
            f"often: {_few(values[counts > 1])}."
        )


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[
        :16
    ]


def _few(values) -> str:
    """The first five values as text."""
    values = [str(value) for value in list(values)]
    return ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
