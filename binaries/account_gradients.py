"""Whose gradients move which layers, epoch by epoch, of a trained run.

  python -m binaries.account_gradients --run_dir=runs/demo/standard

takes about 20 seconds on 2 CPU cores for the 31 saved epochs of the digits
demo. Writes gradient_accounting.npz and .json, figures and report.html into
--out_dir (the run's folder). Expect, while the wrong labels are learned, an
aggregate gradient of the 10 % noisy examples about as long as that of all
clean ones, and a negative cosine between the two.
"""

from binaries import flags, output
from tfmemloc import gradients, report
from tfmemloc.probes.gradient_accounting import account_gradients
from tfmemloc.runs import Run

FLAGS = flags.FLAGS
flags.define_probe_flags()
flags.flags.DEFINE_list("epochs", None, "Saved epochs; default: all.")
flags.flags.DEFINE_enum(
    "engine", "layerwise", gradients.ENGINES, "How to get the gradients."
)
flags.flags.DEFINE_bool(
    "batch_statistics",
    True,
    "BatchNorm of the aggregate gradients: as in training; else frozen.",
)
flags.flags.DEFINE_float(
    "weight_decay", 0.0, "Adds weight_decay * w to each gradient."
)
flags.flags.DEFINE_integer(
    "memory_budget_mib", 1024, "MiB for a chunk of examples."
)


def main() -> None:
    """Accounts, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    result = account_gradients(
        run,
        run.examples(download=FLAGS.download),
        epochs=flags.integers("epochs"),
        inference=FLAGS.inference,
        engine=FLAGS.engine,
        batch_statistics=FLAGS.batch_statistics,
        weight_decay=FLAGS.weight_decay,
        memory_budget=FLAGS.memory_budget_mib * 2**20,
    )
    output.write_probe(
        result,
        "gradient_accounting",
        report.gradient_section(result),
        "binaries.account_gradients",
    )


if __name__ == "__main__":
    flags.run(main)
