"""Image-classification sets of TensorFlow Datasets.

A set that was prepared in a format with random access (`array_record`) stays
on disk and is read by id; any other is read into memory.
"""

from __future__ import annotations

import numpy as np

from tfmemloc import storage
from tfmemloc.configs import DataConfig
from tfmemloc.data import rows
from tfmemloc.data.arrays import from_arrays
from tfmemloc.data.examples import Examples


def load_tfds(config: DataConfig, download: bool) -> Examples:
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
            "TFDS image-classification set, a path that ends in .npz, or a "
            "folder of .npy files."
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
        "with a folder where the set is prepared. In Python: "
        "load(config, download=True), or DataConfig(data_dir=...)."
    )


def _read_split(
    builder, split: str, keys: tuple[str, str], count: int | None
) -> tuple[rows.Rows, np.ndarray]:
    """The images and labels of (the first `count` of) a split."""
    import tensorflow_datasets as tfds

    total = builder.info.splits[split].num_examples
    if count is not None:
        split = f"{split}[:{checked_count(builder.name, split, count, total)}]"
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        return _on_disk(builder, split, keys)
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(
            interleave_cycle_length=1, try_autocache=False
        ),
    ).map(lambda record: (record[keys[0]], record[keys[1]]))
    images, labels = zip(*dataset.batch(1000).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _on_disk(
    builder, split: str, keys: tuple[str, str]
) -> tuple[rows.Rows, np.ndarray]:
    """The images of a split, read on demand, and its labels."""
    import tensorflow_datasets as tfds

    source = builder.as_data_source(split=split)
    labels = builder.as_data_source(
        split=split,
        # Images stay encoded where labels alone are wanted.
        decoders={keys[0]: tfds.decode.SkipDecoding()},
    )
    label = np.array([record[keys[1]] for record in labels], np.int64)
    return SourceRows(source, keys[0]), label


class SourceRows:
    """One feature of a random-access data source of TFDS.

    Args:
        source: of `builder.as_data_source`.
        key: of the feature.
    """

    def __init__(self, source, key: str):
        self._source, self._key = source, key
        first = source[0][key]
        self.shape = (len(source), *first.shape)
        self.dtype = first.dtype

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        places = rows.as_places(places, self.shape[0])
        if not len(places):
            return np.empty((0, *self.shape[1:]), self.dtype)
        records = self._source.__getitems__(places.tolist())
        return np.stack([record[self._key] for record in records])


def checked_count(name: str, part: str, count: int, total: int) -> int:
    """The requested number of examples, refused if there are fewer."""
    if count > total:
        raise ValueError(
            f"{name} has {total} {part} examples. Expected a number up to "
            f"that. Received: {part}_examples={count}."
        )
    return count
