"""Plants memories in known units, and asks each ranking to find them.

  python -m binaries.inject --run_dir=runs/demo/standard

takes about five minutes on 2 CPU cores, most of it for zero_out. Of all units 1
% are drawn, their outgoing weights alone learn one wrong label (or one secret),
and each ranking orders the units of the network for that example; then the
network is put back. Writes injection.npz and .json (a row for each ranking and
share: recall with its interval), a figure and report.html into --out_dir (the
run's folder). On the digits expect about half of the units among the first 1 %
of each layer for own_projection, of the 70 % that are possible.
"""

from . import config_flags, flags, output

from tfmemloc import InjectionConfig, Run, find_planted

FLAGS = flags.FLAGS
flags.define_probe_flags()
config_flags.define(InjectionConfig)


def main() -> None:
    """Plants, ranks, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = find_planted(
        run,
        run.examples(download=FLAGS.download),
        config_flags.read(InjectionConfig),
        progress=True,
    )
    output.write_result(result, "injection", "binaries.inject")


if __name__ == "__main__":
    flags.run(main)
