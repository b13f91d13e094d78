"""Files that are whole or absent: atomic writes, checked reads, one writer.

Everything tfmemloc keeps on disk goes through here. A file is written to a
temporary name beside its place, flushed to the disk, and renamed; so a reader
sees the old file or the new one and never a half. Arrays are stored as `.npz`
(each member carries a CRC-32, which is checked when it is read), everything
else as `.json`. Nothing is ever pickled.
"""

from __future__ import annotations

import contextlib
import contextvars
import csv
import hashlib
import io
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

from tfmemloc import portability


class DamagedFileError(ValueError):
    """A file exists but its content cannot be what was written."""


class DirectoryInUseError(RuntimeError):
    """Another process holds the lock of a directory."""


# One of several processes that may write the same file at a time.
_writer: contextvars.ContextVar[str] = contextvars.ContextVar(
    "writer", default=""
)


@contextlib.contextmanager
def writing_as(writer: int) -> Iterator[None]:
    """Within it, temporary files are this process's own.

    Elsewhere a killed write is overwritten by the next one, whoever it is of.
    """
    token = _writer.set(f".{writer}")
    try:
        yield
    finally:
        _writer.reset(token)


def write_atomically(
    path: str | os.PathLike, write: Callable[[IO[bytes]], None]
) -> None:
    """Calls `write(file)` on a temporary file, then renames it to `path`.

    Args:
        path: where the finished file shall lie; its folder must exist.
        write: receives a binary file open for writing.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; the file that
            was at `path` before, if any, is then still there unchanged.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}{_writer.get()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    portability.flush_directory(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_csv(
    path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Writes rows with the keys of the first one, atomically, one by one.

    Raises:
        ValueError: there is no row, or one has other keys than the first.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{path} expected a row at least. Received: none.")

    def write(file) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)
        text.flush()
        text.detach()

    write_atomically(path, write)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFileError(
            f"{path} is damaged: it should hold JSON, but {error}. Restore it "
            "from a copy, or delete its folder and run again."
        ) from error


def write_arrays(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    *,
    compressed: bool = False,
) -> None:
    """Writes named arrays as one `.npz`, atomically, without pickle."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(
                f"Array {name!r} has dtype object, which only pickle could "
                "store. Expected numbers or strings."
            )
    save = np.savez_compressed if compressed else np.savez
    write_atomically(path, lambda file: save(file, **arrays))


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` and checks their checksums.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: the file was truncated or altered.
    """
    try:
        with (
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as archive,
        ):
            return {name: archive[name] for name in archive.files}
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # A flipped bit makes NumPy raise anything.
        raise DamagedFileError(
            f"{path} is damaged: it should hold the arrays that were saved, "
            f"but reading them failed with '{error}'. Restore it from a copy, "
            "or delete it to have it made again."
        ) from error


_EPOCH_FILE = re.compile(r"epoch_(\d{4,})\.npz")


def epoch_path(directory: str | os.PathLike, epoch: int) -> pathlib.Path:
    """Where a folder keeps the arrays of an epoch."""
    return pathlib.Path(directory) / f"epoch_{epoch:04d}.npz"


def epochs_in(directory: str | os.PathLike) -> tuple[int, ...]:
    """The epochs of which a folder keeps arrays.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    names = (path.name for path in pathlib.Path(directory).iterdir())
    matches = (_EPOCH_FILE.fullmatch(name) for name in names)
    return tuple(sorted(int(match[1]) for match in matches if match))


def digest(arrays: Iterable[np.ndarray]) -> str:
    """A checksum of arrays, for telling whether they are the same."""
    result = hashlib.sha256()
    for array in arrays:
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()


class Parts:
    """The finished parts of a long job, so that a killed job can go on.

    A folder of `<name>.npz`, and `settings.json`, which says of what job they
    are, so that parts of different jobs are never mixed.

    Args:
        directory: made if need be; None keeps nothing.
        settings: of the job, as json.
        job: what it is, for messages.

    Raises:
        ValueError: the folder holds parts of a job with other settings.
    """

    def __init__(
        self,
        directory: str | os.PathLike | None,
        settings: Mapping[str, Any],
        job: str,
    ):
        self.directory = None if directory is None else pathlib.Path(directory)
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "settings.json"
        if not path.exists():
            write_json(path, settings)
            return
        there = read_json(path)
        differs = [
            name
            for name in settings
            if not isinstance(there, dict) or there.get(name) != settings[name]
        ]
        if differs:
            raise ValueError(
                f"{self.directory} holds a {job} with other "
                f"{' and '.join(differs)}. Use another directory, or delete "
                "it."
            )

    def _path(self, name: str) -> pathlib.Path:
        safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
        return self.directory / f"{safe}.npz"

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a finished part; None where it is not finished."""
        if self.directory is None or not self._path(name).exists():
            return None
        return read_arrays(self._path(name))

    def write(
        self,
        name: str,
        arrays: Mapping[str, np.ndarray],
        *,
        compressed: bool = True,
    ) -> None:
        """Keeps a part."""
        if self.directory is not None:
            write_arrays(self._path(name), arrays, compressed=compressed)


@contextlib.contextmanager
def kept_or_temporary(
    path: str | os.PathLike | None,
) -> Iterator[pathlib.Path]:
    """The folder `path`, or, where it is None, one that goes at the end."""
    if path is not None:
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


@contextlib.contextmanager
def lock_directory(path: str | os.PathLike) -> Iterator[None]:
    """Holds `path` for this process alone; makes the folder if need be.

    The lock is the operating system's: it goes away with the process, however
    the process ends, so that nothing has to be cleaned up by hand.

    Raises:
        DirectoryInUseError: another process holds it.
    """
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "a+", encoding="ascii") as file:
        try:
            portability.lock(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise DirectoryInUseError(
                f"{path} is in use by another process (pid {owner}). Two "
                "writers would spoil each other's files. Wait for it, or "
                "choose another directory."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
