"""What a rule keeps of each example while it trains: a table by example id.

Small tables are variables, saved with the run's state. One of more than 256 MiB
lies in the run's folder: each epoch reads the file of the epoch before it and
writes its own, of which a row is one example. Each example comes once in an
epoch, so that each row is read and written once. A training that was killed
goes on from the file of its last whole epoch, which nobody wrote to since.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfmemloc import storage
from tfmemloc.configs import TrainConfig
from tfmemloc.data.examples import Examples
from tfmemloc.training import workers
from tfmemloc.training.tables import of_all_workers, row_of, shared_variable

_MOST_IN_MEMORY = 2**28  # Bytes.


class ByExample:
    """A table [N, width], a row for each example id.

    Args:
        name: of the table, in its files.
        examples: the training examples.
        training: how they are trained on.
        width: numbers for each example.
        start: what all of them are at first.
        dtype: of the numbers.

    Attributes:
        is_on_disk: whether it lies in the run's folder.
        variables: what a run saves of it; nothing where it is on disk.

    Raises:
        ValueError: it is too large for memory, and XLA cannot reach files.
    """

    def __init__(
        self,
        name: str,
        examples: Examples,
        training: TrainConfig,
        *,
        width: int,
        start: float,
        dtype: type[np.floating],
    ):
        self._name = name
        self._ids = tf.constant(np.sort(examples.example_id))
        self._shape = (len(examples), width)
        self._start = start
        self._dtype = np.dtype(dtype)
        self._before: np.ndarray | None = None
        self._now: np.ndarray | None = None
        size = len(examples) * width * self._dtype.itemsize
        # Each worker is told of all examples, and has a table of its own.
        are_many = workers.are_used(tf.distribute.get_strategy())
        self.is_on_disk = size > _MOST_IN_MEMORY and not are_many
        if self.is_on_disk and training.jit_compile:
            raise ValueError(
                f"What rule={training.rule!r} keeps of each example comes to "
                f"{size / 2**20:,.0f} MiB, which lies in the run's folder, and "
                "XLA cannot reach files. Expected jit_compile=False, or at "
                f"most {_MOST_IN_MEMORY / 2**20:.0f} MiB. Received: "
                f"{len(examples):,} examples, jit_compile=True."
            )
        self.variables: list[tf.Variable] = []
        if not self.is_on_disk:
            value = np.full(self._shape, start, self._dtype)
            self.variables = [shared_variable(value)]

    def rows(self, ids: tf.Tensor) -> tf.Tensor:
        """The row of each id: int64 [B] -> [B]."""
        return row_of(self._ids, ids)

    def read(self, rows: tf.Tensor) -> tf.Tensor:
        """What was last written of some examples: [B, width]."""
        if not self.is_on_disk:
            return tf.gather(self.variables[0], rows)
        found = tf.numpy_function(self._read, [rows], self._dtype)
        return tf.ensure_shape(found, [None, self._shape[1]])

    def write(self, rows: tf.Tensor, values: tf.Tensor) -> None:
        """Writes [B, width], of an epoch's each example once; any worker's."""
        rows, values = of_all_workers(rows, tf.cast(values, self._dtype))
        if self.is_on_disk:
            tf.numpy_function(self._write, [rows, values], [])
        else:
            self.variables[0].scatter_nd_update(rows[:, tf.newaxis], values)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        if self._before is None:
            return np.full(
                (len(rows), self._shape[1]), self._start, self._dtype
            )
        return self._before[rows]

    def _write(self, rows: np.ndarray, values: np.ndarray) -> None:
        self._now[rows] = values

    @contextlib.contextmanager
    def epoch(self, directory: pathlib.Path, epoch: int) -> Iterator[None]:
        """Within it, the steps of one epoch read and write.

        Args:
            directory: of the run.
            epoch: how many were trained before this one.

        Raises:
            DamagedFileError: the file of the epoch before it is not there, or
                not whole.
        """
        if not self.is_on_disk:
            yield
            return
        folder = directory / "by_example"
        folder.mkdir(exist_ok=True)
        last = folder / f"{self._name}_{epoch:04}.npy"
        if epoch:
            self._before = self._opened(last)
        for path in folder.glob(f"{self._name}_*.npy"):
            if path != last:
                path.unlink()
        self._now = np.lib.format.open_memmap(
            folder / f"{self._name}_{epoch + 1:04}.npy",
            mode="w+",
            dtype=self._dtype,
            shape=self._shape,
        )
        yield
        self._now.flush()

    def _opened(self, path: pathlib.Path) -> np.ndarray:
        try:
            table = np.load(path, mmap_mode="r", allow_pickle=False)
            if (table.shape, table.dtype) == (self._shape, self._dtype):
                return table
        except (OSError, ValueError):
            pass
        raise storage.DamagedFileError(
            f"{path} does not hold the {self._shape[0]:,} examples that this "
            "run knows. Expected the file that its last whole epoch wrote. "
            f"Delete {path.parent.parent / 'state.npz'} to train anew from the "
            "first epoch."
        )


@contextlib.contextmanager
def epoch_of(
    rule: object, directory: pathlib.Path, epoch: int
) -> Iterator[None]:
    """`ByExample.epoch` of all `tables` that a rule has."""
    with contextlib.ExitStack() as stack:
        for table in getattr(rule, "tables", []):
            stack.enter_context(table.epoch(directory, epoch))
        yield
