"""Finds the few units of a network whose removal flips a prediction.

  python -m binaries.ablate --run_dir=runs/demo/standard

takes about 15 seconds on 2 CPU cores for the 143 noisy and 143 clean examples
of the digits demo. Writes critical_units.npz and .json (a row for each
example: its units, and what their removal did), figures and report.html into
--out_dir (the run's folder). If it is killed, the same command goes on with the
next block of examples. Expect about five units for a wrong label, more for a
right one, and little harm to the other examples.

binaries.localize --probes=own_units tells whether the critical units of an
example are its own memorization units.
"""

import dataclasses
import pathlib

from . import config_flags, flags, output

from tfmemloc import Run, SearchConfig, find_critical_units
from tfmemloc.units import PAPER_PROTOCOL

FLAGS = flags.FLAGS
flags.define_probe_flags()
flags.flags.DEFINE_enum(
    "protocol",
    "ours",
    ["ours", "paper"],
    "paper sets "
    + ", ".join(f"--{name}={value}" for name, value in PAPER_PROTOCOL.items())
    + ", as the authors' code has it, where no flag says otherwise; their sets "
    "are the column greedy_size.",
)
config_flags.define(SearchConfig)


def main() -> None:
    """Searches, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    out = pathlib.Path(FLAGS.out_dir or FLAGS.run_dir)
    result = find_critical_units(
        run,
        run.examples(download=FLAGS.download),
        _search_config(),
        directory=out / "critical_units",
    )
    output.write_result(result, "critical_units", "binaries.ablate")


def _search_config() -> SearchConfig:
    config = config_flags.read(SearchConfig)
    if FLAGS.protocol == "ours":
        return config
    theirs = {
        name: value
        for name, value in PAPER_PROTOCOL.items()
        if not FLAGS[name].present
    }
    return dataclasses.replace(config, **theirs)


if __name__ == "__main__":
    flags.run(main)
