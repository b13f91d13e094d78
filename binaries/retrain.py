"""Resets each layer group of a trained run and trains it on clean examples.

  python -m binaries.retrain --run_dir=runs/demo/standard

takes about 30 seconds on 2 CPU cores for the 9 groups of the digits demo.
Writes layer_retraining.npz and .json, a figure and report.html into --out_dir
(the run's folder). If it is killed, the same command goes on with the next
group. Expect the network to predict the wrong labels again after the retraining
of most groups, although no group is retrained on them.
"""

import pathlib

from . import config_flags, flags, output, protocol

from tfmemloc import RetrainConfig, Run, retrain_layers

FLAGS = flags.FLAGS
flags.define_probe_flags()
protocol.define(RetrainConfig)
config_flags.define(RetrainConfig)


def main() -> None:
    """Retrains, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = retrain_layers(
        run,
        run.examples(download=FLAGS.download),
        protocol.applied(config_flags.read(RetrainConfig)),
        directory=pathlib.Path(FLAGS.out_dir or FLAGS.run_dir) / "retraining",
    )
    output.write_result(result, "layer_retraining", "binaries.retrain")


if __name__ == "__main__":
    flags.run(main)
