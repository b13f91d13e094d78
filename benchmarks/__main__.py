"""Runs the benchmarks: python -m benchmarks [--only=NAME,...] [--json=FILE]."""

import dataclasses
import sys

from benchmarks import (
    critical_units,
    decoder,
    edit,
    gradients,
    layers,
    memory,
    rankings,
    recording,
    serving,
    tied_layer,
)
from benchmarks.harness import chosen
from binaries import flags  # First: it quiets TensorFlow's start.
from tfmemloc import storage

BENCHMARKS = {
    "gradients": gradients.run,
    "rewinding": layers.rewinding,
    "retraining": layers.retraining,
    "critical_units": critical_units.run,
    "rankings": rankings.run,
    "serving": serving.run,
    "tied_layer": tied_layer.run,
    "recording": recording.run,
    "memory": memory.run,
    "edit": edit.run,
    "decoder": decoder.run,
}

flags.flags.DEFINE_list("only", None, f"Some of {', '.join(BENCHMARKS)}.")
flags.flags.DEFINE_string("json", None, "Also write the rows to this file.")


def main() -> None:
    """Measures, prints a table, writes the rows."""
    names = chosen(flags.FLAGS.only, BENCHMARKS)
    rows = [row for name in names for row in BENCHMARKS[name]()]
    width = max(len(row.metric) for row in rows)
    for row in rows:
        reach = "" if row.reach is None else f"  reach {row.reach:g}"
        print(
            f"{row.metric.ljust(width)}  {row.value:8.3f}  "
            f"[{row.min:.3f}, {row.max:.3f}]{reach}"
        )
    if flags.FLAGS.json:
        storage.write_json(
            flags.FLAGS.json, [dataclasses.asdict(row) for row in rows]
        )
    sys.stdout.flush()


if __name__ == "__main__":
    flags.run(main)
