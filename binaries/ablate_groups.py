"""Finds the few units whose removal flips all wrong labels of a class.

  python -m binaries.ablate_groups --run_dir=runs/demo/standard

takes about twenty seconds on 2 CPU cores for the digits demo. Writes
group_units.npz and .json (a row for each group: its units, and what their
removal did), a figure and report.html into --out_dir (the run's folder). The
controls are as many right labels of the same class, and units in a random order
and by activation. binaries.ablate searches the units of single examples.
"""

from . import config_flags, flags, output

from tfmemloc import GroupSearchConfig, Run, find_group_units

FLAGS = flags.FLAGS
flags.define_probe_flags()
config_flags.define(GroupSearchConfig)


def main() -> None:
    """Searches, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = find_group_units(
        run,
        run.examples(download=FLAGS.download),
        config_flags.read(GroupSearchConfig),
    )
    output.write_result(result, "group_units", "binaries.ablate_groups")


if __name__ == "__main__":
    flags.run(main)
