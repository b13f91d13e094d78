"""What operating systems do differently: locks, folders, reads at a place."""

from __future__ import annotations

import os
import threading
from typing import IO

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None  # type: ignore[assignment]

# A locked byte cannot be read by others there; nothing is written so far out.
_FAR = 2**30
_SEEKING = threading.Lock()


def lock(file: IO) -> None:
    """Locks an open file; the lock ends with the file, or with the process.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    place = file.tell()
    file.seek(_FAR)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(*error.args) from None
    finally:
        file.seek(place)


def flush_directory(path: str | os.PathLike) -> None:
    """Makes a rename in a folder survive a power cut, where that takes a call.

    Windows cannot open folders, and keeps their names in its journal.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_to_read(path: str | os.PathLike) -> int:
    """A descriptor of a file's bytes as they are."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Reads from a place in a file; the number of bytes, 0 at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        found = os.read(descriptor, len(buffer))
    buffer[: len(found)] = found
    return len(found)
