"""Finds wrong labels in the data of a run with example-tied dropout.

  python -m binaries.score_examples --run_dir=runs/demo/example_tied

takes about 20 seconds on 2 CPU cores for the digits demo. Writes into
--out_dir (the run's folder) example_scores.npz and .json, suspects.csv (all
training examples, the most suspicious first) and suspects.html (pictures of
the first 100). Expect an area under the ROC curve above 0.99 for 10 % wrong
labels of the digits.
"""

import pathlib

from binaries import flags, output
from tfmemloc import label_errors
from tfmemloc.runs import Run

FLAGS = flags.FLAGS
flags.flags.DEFINE_string("run_dir", None, "The run.", required=True)
flags.flags.DEFINE_string("out_dir", None, "Default: the run's folder.")
flags.flags.DEFINE_bool(
    "gradient_scores",
    True,
    "Also GraNd and TracIn; a pass of gradients for each saved epoch.",
)
flags.flags.DEFINE_bool("download", False, "Let TFDS fetch missing data.")


def main() -> None:
    """Scores, writes, prints."""
    run = Run.open(FLAGS.run_dir)
    directory = pathlib.Path(FLAGS.out_dir or FLAGS.run_dir)
    scores = label_errors.find_label_errors(
        run,
        run.examples(download=FLAGS.download),
        directory,
        gradient_scores=FLAGS.gradient_scores,
    )
    output.print_section(label_errors.suspects_section(scores))
    print(f"table: {directory / label_errors.TABLE}")
    print(f"page: {directory / label_errors.PAGE}")


if __name__ == "__main__":
    flags.run(main)
