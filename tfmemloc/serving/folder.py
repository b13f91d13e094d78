"""Writes a folder under a temporary name and renames it when complete."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

import tensorflow as tf


def check_free(path: pathlib.Path, overwrite: bool) -> None:
    """Refuses a place where something lies that may not be replaced."""
    _clear_leftovers(path)
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"The folder {path.parent}, where the export would lie, does "
                "not exist."
            )
        return
    if not overwrite:
        raise FileExistsError(
            f"{path} exists. Choose another path, or overwrite=True "
            "(--overwrite) to replace an export."
        )
    if not (path / "saved_model.pb").exists():
        raise FileExistsError(
            f"{path} is not an export: it has no saved_model.pb. Delete it "
            "yourself, or choose another path."
        )


@contextlib.contextmanager
def beside(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A new folder beside `path`; renamed to it when the body succeeds."""
    mark = uuid.uuid4().hex[:8]
    folder = path.with_name(f".{path.name}.{mark}.tmp")
    old = path.with_name(f".{path.name}.{mark}.old")
    lock = None
    try:
        folder.mkdir()
        # The lock ends with the process: a folder without one is a leftover.
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        if overwrite and path.exists():
            path.rename(old)
        folder.rename(path)
    except tf.errors.OpError as error:
        raise OSError(
            f"The export could not be written to {path}: {error.message} "
            "Nothing was left there."
        ) from error
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed exports to `path` left behind.

    A folder that was to be overwritten comes back if nothing took its place.
    """
    name = glob.escape(path.name)
    for folder in path.parent.glob(f".{name}.????????.tmp"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # Another export is at it.
        finally:
            os.close(lock)
    for old in path.parent.glob(f".{name}.????????.old"):
        if old.with_suffix(".tmp").exists():
            continue
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)
