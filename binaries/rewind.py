"""Sets layer groups of a trained run back to earlier epochs, and measures.

  python -m binaries.rewind --run_dir=runs/demo/standard

takes about 10 seconds on 2 CPU cores for 9 groups and 8 epochs of the digits
demo. Writes layer_rewinding.npz and .json, a figure and report.html into
--out_dir (the run's folder). Expect that rewinding the last layers costs no
accuracy, and that one of the first layers is the most sensitive.
"""

from . import config_flags, flags, output, protocol

from tfmemloc import RewindConfig, Run, rewind_layers

FLAGS = flags.FLAGS
flags.define_probe_flags()
protocol.define(RewindConfig)
config_flags.define(RewindConfig)


def main() -> None:
    """Rewinds, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = rewind_layers(
        run,
        run.examples(download=FLAGS.download),
        protocol.applied(config_flags.read(RewindConfig)),
    )
    output.write_result(result, "layer_rewinding", "binaries.rewind")


if __name__ == "__main__":
    flags.run(main)
