"""Prints the peak memory of streamed per-example norms over their budget.

`python -m benchmarks.peak_memory BUDGET_MIB`. Resident memory is sampled every
two milliseconds while the examples stream; the peak counts from what the
process held before, with the model built, and everything traced by one
example.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np

from tfmemloc import data
from tfmemloc.configs import ModelConfig
from tfmemloc.gradients.engine import GradientEngine
from tfmemloc.gradients.per_example import per_example_norms
from tfmemloc.models import build


def resident_bytes() -> int:
    """What the process holds in memory now (Linux)."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def private_bytes() -> int:
    """The same without pages of files, such as data that lie on disk."""
    resident, shared = pathlib.Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def sampled_peak(
    held: Callable[[], int] = resident_bytes,
) -> Iterator[list[int]]:
    """Gives a list that ends up holding the peak growth in bytes."""
    before, peak, done = held(), [0], threading.Event()

    def sample():
        while not done.wait(0.002):
            peak[0] = max(peak[0], held() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure(budget: int, count: int = 256) -> float:
    """Growth of the peak over the budget, as a ratio."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count + 1, 32, 32, 3), np.uint8)
    label = np.arange(count + 1) % 10
    examples = data.from_arrays(
        pixels[:count], label[:count], pixels[count:], label[count:]
    ).train
    model = build(ModelConfig("resnet9", dropout="none"), (32, 32, 3), 10)
    engine = GradientEngine(model)
    per_example_norms(engine, examples.take(np.arange(1)))
    with sampled_peak() as peak:
        per_example_norms(engine, examples, memory_budget=budget)
    return peak[0] / budget


if __name__ == "__main__":
    print(measure(int(sys.argv[1]) * 2**20))
