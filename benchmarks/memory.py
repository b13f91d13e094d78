"""Peak memory of a training on data that lie on disk, over their size.

`python -m benchmarks --only=memory` writes 1.2 GB of pictures into a temporary
file and starts two processes (`python -m benchmarks.memory memmap FILE`). Each
loads the pictures, makes labels wrong, takes the fingerprint, trains 20 steps
and evaluates 2,000 examples, while its resident memory is sampled every two
milliseconds. The growth counts from what the process held after its imports.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks.harness import Row
from benchmarks.peak_memory import sampled_peak

_COUNT, _SHAPE = 390_625, (32, 32, 3)  # 1.2e9 bytes of uint8.
_STEPS, _BATCH, _EVALUATED = 20, 128, 2_000
_SIDES = {"memmap": 0.2, "in memory": 1.5}


def run() -> list[Row]:
    """A row for data on disk and one for data in memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "pictures.npy"
        _write(path)
        for side, reach in _SIDES.items():
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", side, str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
            share = float(done.stdout.split()[-1])
            metric = f"{side}: peak memory / data"
            rows.append(
                Row("memory", metric, share, share, share, 1, reach, True)
            )
    return rows


def _write(path: pathlib.Path) -> None:
    """Random pictures, a few thousand at a time."""
    values = np.lib.format.open_memmap(path, "w+", np.uint8, (_COUNT, *_SHAPE))
    rng = np.random.default_rng(0)
    for start in range(0, _COUNT, 5000):
        part = values[start : start + 5000]
        part[:] = rng.integers(0, 256, part.shape, np.uint8)
    values.flush()


def measure(side: str, path: str) -> float:
    """Growth of the peak over the size of the data."""
    from tfmemloc import data, evaluation
    from tfmemloc.configs import ModelConfig, TrainConfig
    from tfmemloc.models import build
    from tfmemloc.training import make_optimizer, make_train_step

    with sampled_peak() as peak:
        x = path if side == "memmap" else np.load(path)
        label = np.arange(_COUNT) % 10
        examples = data.from_arrays(x, label, classes=10)
        examples = data.add_label_noise(examples, 0.1, seed=0)
        examples.fingerprint()
        model = build(ModelConfig(width=0.125), _SHAPE, 10)
        optimizer = make_optimizer(TrainConfig(), _STEPS)
        optimizer.build(model.trainable_variables)
        batches = data.make_batches(
            examples.train, _BATCH, seed=0, stop_step=_STEPS
        )
        step = make_train_step(
            model, optimizer, batch_spec=batches.element_spec
        )
        for batch in batches:
            step(batch)
        evaluation.evaluate(model, examples.take(np.arange(_EVALUATED)))
    return peak[0] / os.path.getsize(path)


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
