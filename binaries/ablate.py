"""Finds the few units of a network whose removal flips a prediction.

  python -m binaries.ablate --run_dir=runs/demo/standard

takes about 15 seconds on 2 CPU cores for the 143 noisy and 143 clean examples
of the digits demo. Writes critical_units.npz and .json (a row for each
example: its units, and what their removal did), figures and report.html into
--out_dir (the run's folder). If it is killed, the same command goes on with the
next block of examples. Expect about five units for a wrong label, more for a
right one, and little harm to the other examples. With --protocol=paper the
authors' sets are the column greedy_size.

binaries.localize --probes=own_units tells whether the critical units of an
example are its own memorization units.
"""

import pathlib

from . import config_flags, flags, output, protocol

from tfmemloc import Run, SearchConfig, find_critical_units

FLAGS = flags.FLAGS
flags.define_probe_flags()
protocol.define(SearchConfig)
config_flags.define(SearchConfig)


def main() -> None:
    """Searches, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    out = pathlib.Path(FLAGS.out_dir or FLAGS.run_dir)
    result = find_critical_units(
        run,
        run.examples(download=FLAGS.download),
        protocol.applied(config_flags.read(SearchConfig)),
        directory=out / "critical_units",
    )
    output.write_result(result, "critical_units", "binaries.ablate")


if __name__ == "__main__":
    flags.run(main)
