"""Sets layer groups of a trained run back to earlier epochs, and measures.

  python -m binaries.rewind --run_dir=runs/demo/standard

takes about 10 seconds on 2 CPU cores for 9 groups and 8 epochs of the digits
demo. Writes layer_rewinding.npz and .json, a figure and report.html into
--out_dir (the run's folder). Expect the last layers to be put back with no
loss, and one of the first to be the most sensitive.
"""

from binaries import flags, output
from tfmemloc import report
from tfmemloc.probes.layer_rewinding import MODES, rewind_layers
from tfmemloc.runs import Run

FLAGS = flags.FLAGS
flags.define_probe_flags()
flags.flags.DEFINE_list(
    "epochs", None, "Saved epochs; default: those of 0, 2, ..., 14 there are."
)
flags.flags.DEFINE_enum(
    "mode",
    "single",
    MODES,
    "Rewind single groups, all groups up_to one, or all from one on.",
)
flags.flags.DEFINE_bool("statistics", True, "Also rewind BatchNorm statistics.")


def main() -> None:
    """Rewinds, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = rewind_layers(
        run,
        run.examples(download=FLAGS.download),
        epochs=flags.integers("epochs"),
        mode=FLAGS.mode,
        statistics=FLAGS.statistics,
        inference=FLAGS.inference,
    )
    output.write_probe(
        result,
        "layer_rewinding",
        report.rewinding_section(result),
        "binaries.rewind",
    )


if __name__ == "__main__":
    flags.run(main)
