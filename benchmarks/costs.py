"""What each job costs by the number of examples and the width of the network.

  python -m benchmarks.costs --run_dir=runs/costs

makes pictures of 28x28 that lie on disk as `.npy` files (scikit-learn's digits,
enlarged and moved about), 10 % of their labels wrong, and times on them: an
epoch of training, one curvature edit with its choice, the ranking of all labels
with its pages, the search for the critical units of 128 examples, and the
report. Each size runs in a process of its own. A million examples take an hour
on 2 CPU cores; run nothing beside it. Writes docs/results/costs.json, a row for
each network, size and stage:

    seconds     of the stage, without importing TensorFlow
    peak        bytes of memory beyond what the process held after its imports,
                without the pages of the data's files
    written     bytes that the stage left on disk, of what a person opens
"""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.harness import kept_rows
from benchmarks.peak_memory import private_bytes, sampled_peak
from binaries import flags, output  # First: they quiet TensorFlow's start.
from tfmemloc import (
    CurvatureConfig,
    DataConfig,
    ModelConfig,
    SearchConfig,
    TrainConfig,
    find_critical_units,
    find_label_errors,
    load,
    remove_memory,
    report,
    storage,
    train,
)
from tfmemloc.layers import masks

RESULTS = pathlib.Path("docs") / "results" / "costs.json"
FLAGS = flags.FLAGS
# (network, width, training examples)
CASES = (
    *(("lenet", 1.0, size) for size in (1_000, 10_000, 100_000, 1_000_000)),
    *(("resnet9", width, 1_000) for width in (0.25, 0.5, 1.0)),
    *(("resnet9", 0.25, size) for size in (10_000, 100_000)),
)
_SIDE, _TEST = 28, 1_000
_SEARCHED = 128


def main() -> None:
    """Measures what is not there yet, each case in a process of its own."""
    if FLAGS.case >= 0:
        _measure(*CASES[FLAGS.case])
        return
    for case, (network, width, size) in enumerate(CASES):
        key = {"network": network, "width": width, "examples": size}
        is_wanted = not FLAGS.sizes or str(size) in FLAGS.sizes
        if not is_wanted or any(key.items() <= row.items() for row in _rows()):
            continue
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.costs"),
                *(f"--case={case}", f"--run_dir={FLAGS.run_dir}"),
                f"--results={FLAGS.results}",
            ],
            check=True,
        )
    print(report.text_table(_rows(), percent=False))


def _rows() -> list[dict[str, Any]]:
    return kept_rows(FLAGS.results)


def _measure(network: str, width: float, size: int) -> None:
    """The rows of one case."""
    folder = pathlib.Path(FLAGS.run_dir)
    data = folder / f"data_{size}"
    if not (data / "y_train.npy").exists():
        _write_data(data, size)
    work = folder / f"{network}_{width}_{size}"
    key = {"network": network, "width": width, "examples": size}
    stages = Stages(key)
    with stages.of("load"):
        config = DataConfig(str(data), noise_rate=0.1, heldout=0.02)
        examples = load(config)
        examples.fingerprint()
    training = TrainConfig(
        epochs=1, batch_size=128, learning_rate=0.05, evaluate_every=2
    )
    runs = {}
    for dropout in ("none", "example_tied"):
        with stages.of(f"epoch, {dropout}", written=work / dropout):
            runs[dropout] = train(
                work / dropout,
                data=config,
                examples=examples,
                model=ModelConfig(network, width=width, dropout=dropout),
                training=training,
                progress=False,
            )
    with stages.of("edit"):
        remove_memory(runs["none"], examples, CurvatureConfig(refit_epochs=0))
    pages = work / "labels"
    with stages.of("ranking", written=pages / "review.html"):
        scores = find_label_errors(
            runs["example_tied"], examples, pages, progress=False
        )
    with stages.of("search of 128"):
        units = find_critical_units(
            runs["example_tied"],
            examples,
            SearchConfig(count=_SEARCHED // 2),
            progress=False,
        )
    with stages.of("report", written=work / "report.html"):
        sections = [report.section_of(each) for each in (scores, units)]
        output.write_report(work, "Costs", sections, {})
    storage.write_json(FLAGS.results, {"rows": [*_rows(), *stages.rows]})


class Stages:
    """Times the stages of one case."""

    def __init__(self, key: dict[str, Any]):
        self._key = key
        self._held = private_bytes()
        self.rows: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def of(
        self, stage: str, written: pathlib.Path | None = None
    ) -> Iterator[None]:
        """Adds a row for what is done inside."""
        started, before = time.perf_counter(), private_bytes()
        with sampled_peak(private_bytes) as growth:
            yield
        row = {
            **self._key,
            "stage": stage,
            "seconds": round(time.perf_counter() - started, 2),
            "peak": before + growth[0] - self._held,
            "written": _bytes_of(written) if written else None,
        }
        print(row, flush=True)
        self.rows.append(row)


def _bytes_of(path: pathlib.Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_data(folder: pathlib.Path, size: int) -> None:
    """Pictures on disk; the labels last, so that a killed writing is seen."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    large = np.kron(digits.images * (255 / 16), np.ones((3, 3)))
    for part, count, first in (("test", _TEST, 0), ("train", size, _TEST)):
        pictures = np.lib.format.open_memmap(
            folder / f"x_{part}.npy", "w+", np.uint8, (count, _SIDE, _SIDE)
        )
        label = np.zeros(count, np.int64)
        for start in range(0, count, 10_000):
            rows = np.arange(start, min(start + 10_000, count))
            bits = masks.hash_bits_numpy(0, rows + first, 4)
            which = bits[:, 0] % len(large)
            label[rows] = digits.target[which]
            pictures[rows] = (
                masks.hash_bits_numpy(1, rows + first, _SIDE**2).reshape(
                    -1, _SIDE, _SIDE
                )
                % 40
            )
            for row, source, up, left in zip(
                rows, which, bits[:, 1] % 5, bits[:, 2] % 5, strict=True
            ):
                pictures[row, up : up + 24, left : left + 24] = large[source]
        pictures.flush()
        np.save(folder / f"y_{part}.npy", label)


if __name__ == "__main__":
    flags.flags.DEFINE_list("sizes", [], "Only these numbers of examples.")
    flags.flags.DEFINE_integer("case", -1, "Only measure this case, here.")
    flags.flags.DEFINE_string("run_dir", "runs/costs", "Where all of it lies.")
    flags.flags.DEFINE_string("results", str(RESULTS), "File of the rows.")
    flags.run(main)
