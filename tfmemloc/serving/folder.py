"""Writes a folder under a temporary name and renames it when complete."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

import tensorflow as tf

from tfmemloc import portability


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
    old = folder.with_suffix(".old")
    with _held(folder):
        try:
            folder.mkdir()
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
            shutil.rmtree(folder, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder that is being filled, by a file beside it.

    The lock ends with the process: a folder without one is a leftover. Windows
    renames no folder in which a file is open, hence beside.

    Raises:
        BlockingIOError: another process holds it.
    """
    path = folder.with_suffix(".lock")
    with open(path, "ab") as file:
        portability.lock(file)
        try:
            yield
        finally:
            if os.name != "nt":
                path.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed exports to `path` left behind.

    A folder that was to be overwritten comes back if nothing took its place.
    """
    name = glob.escape(path.name)
    marked = {
        left.with_suffix(".tmp")
        for left in path.parent.glob(f".{name}.????????.*")
        if left.suffix in (".tmp", ".old", ".lock")
    }
    for folder in marked:
        # Where it is held, another export is at it.
        with contextlib.suppress(BlockingIOError), _held(folder):
            shutil.rmtree(folder, ignore_errors=True)
            old = folder.with_suffix(".old")
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            elif old.exists():
                old.rename(path)
