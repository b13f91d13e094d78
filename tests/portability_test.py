"""What other operating systems lack is not asked for."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tfmemloc import portability


def test_a_lock_is_exclusive_and_ends_with_its_file(tmp_path):
    path = tmp_path / "lock"
    with open(path, "a+") as first, open(path, "a+") as second:
        portability.lock(first)
        with pytest.raises(BlockingIOError):
            portability.lock(second)
    with open(path, "a+") as third:
        portability.lock(third)


def test_reads_at_a_place_without_preadv(tmp_path, monkeypatch):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    found = []
    for _ in range(2):  # With it, and without.
        descriptor = portability.open_to_read(path)
        buffer = np.zeros(10, np.uint8)
        for offset in (90, 3, 95, 100):
            count = portability.read_into(descriptor, buffer.data, offset)
            found.append((count, buffer[:count].tolist()))
        os.close(descriptor)
        monkeypatch.delattr(os, "preadv", raising=False)
    assert found[:4] == found[4:]
    assert found[2:4] == [(5, [95, 96, 97, 98, 99]), (0, [])]


def test_fcntl_is_not_needed_at_the_door():
    """Windows has none."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import tfmemloc, tfmemloc.serving, tfmemloc.sweeps\n"
        "print('ready')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "ready", done.stderr
