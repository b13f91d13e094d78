"""Resets each layer group of a trained run and trains it on clean examples.

  python -m binaries.retrain --run_dir=runs/demo/standard

takes about 30 seconds on 2 CPU cores for the 9 groups of the digits demo.
Writes layer_retraining.npz and .json, a figure and report.html into --out_dir
(the run's folder); killed, the same command goes on with the next group.
Expect most groups to give the wrong labels back without having seen them.
"""

import dataclasses
import pathlib

from binaries import flags, output
from tfmemloc import report
from tfmemloc.probes.layer_retraining import AUTHORS_TRAINING, retrain_layers
from tfmemloc.runs import Run

FLAGS = flags.FLAGS
flags.define_probe_flags()
flags.flags.DEFINE_list("groups", None, "Which groups; default: all.")
flags.flags.DEFINE_string(
    "train_on",
    "clean",
    "The subset that a group is trained on: clean, or noisy for the opposite "
    "question; typical or atypical with --score_file.",
)
flags.flags.DEFINE_integer("reset_to", 0, "Saved epoch to set a group back to.")
flags.flags.DEFINE_integer(
    "epochs",
    20,
    "At most so many for each group; stops earlier after 3 epochs at 100 % on "
    "the --train_on subset.",
)
flags.flags.DEFINE_float(
    "learning_rate", 0.01, "Peak of the triangle schedule."
)
flags.flags.DEFINE_integer("batch_size", None, "Default: the run's.")


def main() -> None:
    """Retrains, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    batch_size = FLAGS.batch_size or (
        run.training.batch_size if run.training else 512
    )
    result = retrain_layers(
        run,
        run.examples(download=FLAGS.download),
        training=dataclasses.replace(
            AUTHORS_TRAINING,
            epochs=FLAGS.epochs,
            learning_rate=FLAGS.learning_rate,
            batch_size=batch_size,
        ),
        train_on=FLAGS.train_on,
        reset_to=FLAGS.reset_to,
        only=FLAGS.groups,
        inference=FLAGS.inference,
        directory=pathlib.Path(FLAGS.out_dir or FLAGS.run_dir) / "retraining",
    )
    output.write_probe(
        result,
        "layer_retraining",
        report.retraining_section(result),
        "binaries.retrain",
    )


if __name__ == "__main__":
    flags.run(main)
