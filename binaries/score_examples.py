"""Finds wrong labels in the data of a run with example-tied dropout.

  python -m binaries.score_examples --run_dir=runs/demo/example_tied

takes about half a minute on 2 CPU cores for the digits demo. Writes into
--out_dir (the run's folder) example_scores.npz and .json, suspects.csv (all
training examples, the most suspicious first), suspects.html (the first 100
suspects, as pictures, texts or rows) and suspects.json (how well each score
finds the labels that are known to be wrong). Expect an area under the ROC curve
above 0.99 for 10 % wrong labels of the digits.

A suspect is an example for which another label is more probable when the
network's memorization units are off; its suspicion is the probability that the
label is wrong. Test examples calibrate the suspicion. Without them, a network
that was not trained to the end may be sure of wrong predictions; the program
then warns. In all scores, more is more suspicious; the table is sorted by
"combined". The run must be of a network with example-tied dropout
(binaries.train's default).

Several networks rank better than one. Networks that were trained on the same
data with different seeds can be scored together:

  python -m binaries.sweep --grid=seed=0..2 --base="--dataset=mine.npz" \\
    --run_dir=runs/mine
  python -m binaries.score_examples --run_dir='runs/mine/*'

If labels are made wrong on purpose, add --noise_seed=0 to --base: by default
--seed also decides which labels are made wrong.
"""

import dataclasses
import glob
import os
import pathlib

import numpy as np

from binaries import config_flags, flags, output
from tfmemloc import (
    Run,
    ScoreConfig,
    SearchConfig,
    find_critical_units,
    find_label_errors,
    report,
    scores,
    second_split_times,
)
from tfmemloc.data import Examples
from tfmemloc.scores.suspects import PAGE, TABLE

FLAGS = flags.FLAGS
flags.flags.DEFINE_string(
    "run_dir",
    None,
    flags.RUN_HELP + " Or a pattern, such as 'runs/mine/*', that matches "
    "several runs of the same data, which are scored together.",
    required=True,
)
flags.flags.DEFINE_string(
    "out_dir",
    None,
    "Default: the run's folder; of several runs, the folder that holds them.",
)
config_flags.define(ScoreConfig)
flags.flags.DEFINE_bool(
    "critical_set",
    False,
    "Also the size of each example's critical set, in the tied network.",
)
flags.flags.DEFINE_bool(
    "second_split",
    False,
    "Also second-split forgetting; takes four more trainings, of the network "
    "without dropout on half of the data.",
)
flags.flags.DEFINE_string(
    "subset_runs",
    None,
    "Also memorization estimates (Feldman and Zhang) from the runs in the "
    "folders that this pattern matches, such as 'runs/subsets/*'; see "
    "binaries.sweep --help.",
)
flags.flags.DEFINE_integer(
    "shown",
    None,
    "Number of examples to show, suspected or not; the default is "
    "the first 100 suspects.",
    lower_bound=1,
)
flags.define_download()


def main() -> None:
    """Scores, writes, prints."""
    runs = _runs()
    directory = pathlib.Path(FLAGS.out_dir or _folder(runs))
    # Before trainings and searches that may take hours.
    for run in runs:
        scores.check_scorable(run)
    run = runs[0]
    if FLAGS.second_split and run.model_config is None:
        raise ValueError(
            "--second_split trains the network of the run anew. Expected a run "
            f"that binaries.train made. Received: {run.directory}, whose "
            "network is your own; see tfmemloc.second_split_times."
        )
    examples = run.examples(download=FLAGS.download)
    found = find_label_errors(
        runs,
        examples,
        directory,
        config_flags.read(ScoreConfig),
        shown=FLAGS.shown,
        extra_scores=_extra_scores(run, examples, directory),
    )
    output.print_section(report.section_of(found))
    print(f"table: {directory / TABLE}")
    print(f"page: {directory / PAGE}")


def _runs() -> list[Run]:
    """The runs of --run_dir, one or several."""
    if pathlib.Path(FLAGS.run_dir).exists():
        return [Run.open(FLAGS.run_dir)]
    # If nothing matches, `Run.open` raises the error for a missing run.
    return _matched(FLAGS.run_dir) or [Run.open(FLAGS.run_dir)]


def _folder(runs: list[Run]) -> pathlib.Path:
    """Where results go by default."""
    if len(runs) == 1:
        return runs[0].directory
    return pathlib.Path(os.path.commonpath([run.directory for run in runs]))


def _matched(pattern: str) -> list[Run]:
    """The runs in the folders that a pattern matches."""
    return [
        Run.open(path)
        for path in sorted(glob.glob(pattern))
        if (pathlib.Path(path) / "config.json").exists()
    ]


def _extra_scores(
    run: Run, examples: Examples, directory: pathlib.Path
) -> dict[str, np.ndarray]:
    """The scores that take trainings or searches of their own."""
    train, extra = examples.train, {}
    if FLAGS.critical_set:
        extra["critical_set"] = scores.critical_set_score(
            find_critical_units(
                run,
                examples,
                SearchConfig(
                    ids=tuple(train.example_id.tolist()), inference="tied"
                ),
                directory=directory / "search",
            ),
            train,
        )
    if FLAGS.second_split:
        times = second_split_times(
            directory / "second_split",
            examples,
            model=dataclasses.replace(run.model_config, dropout="none"),
            training=run.training,
        )
        extra["second_split"] = -times
    if FLAGS.subset_runs:
        extra["memorization"] = _estimated(directory, examples)
    return extra


def _estimated(directory: pathlib.Path, examples: Examples) -> np.ndarray:
    """Memorization from the runs of --subset_runs; 0 where it is unknown."""
    runs = _matched(FLAGS.subset_runs)
    if not runs:
        raise ValueError(
            "--subset_runs matches no folder with a run. Received: "
            f"{FLAGS.subset_runs!r}."
        )
    estimates = scores.estimate_memorization(runs, examples)
    directory.mkdir(parents=True, exist_ok=True)
    estimates.save(directory / "memorization")
    unknown = int(np.isnan(estimates.memorization).sum())
    if unknown:
        print(
            f"memorization: {unknown} examples were in all of the "
            f"{len(runs)} subsets, or in none; they count as 0."
        )
    return np.nan_to_num(estimates.memorization, nan=0.0)


if __name__ == "__main__":
    flags.run(main)
