"""Finds wrong labels by a trained network, and corrects what you decided.

  python -m binaries.score_examples --run_dir=runs/demo/example_tied

takes about half a minute on 2 CPU cores for the digits demo. Writes into
--out_dir (the run's folder) review.html (a page to decide on, by keys),
example_scores.npz and .json, suspects.csv (all training examples, the most
suspicious first), suspects.html (the first 100 suspects, as pictures, texts or
rows), suspects.json (how well each score finds the labels that are known to be
wrong), issues.csv (the columns of cleanlab's issue tables, which FiftyOne reads
as well) and duplicates.json (examples that come twice, with different labels or
in training and test). Expect an area under the ROC curve above 0.99 for 10 %
wrong labels of the digits.

Any other trained network will do, too: of a run without tied dropout, or a
.keras file with its training data. Its memory is taken out of a copy
(binaries.remove), and the copy judges; so does the course of the training,
which a run has recorded (--recording for a .keras file):

  python -m binaries.score_examples --model=my.keras --dataset=mine.npz \\
    --out_dir=labels

Without any network, all other examples judge each label, in seconds:

  python -m binaries.score_examples --dataset=mine.npz --out_dir=labels

Decide on review.html, save decisions.csv, and let the same command apply them:

  python -m binaries.score_examples --model=my.keras --dataset=mine.npz \\
    --out_dir=labels --decisions=decisions.csv

writes corrected_labels.csv and prints the command that trains on it.

A suspect is an example for which another label is more probable by what is
known without the example itself: the network without its memory, and all other
examples. Its suspicion is the probability that the label is wrong, by the other
examples alone. Examples that were not trained on, with labels as they are, say
how much either counts. In all scores, more is more suspicious; the table is
sorted by "combined".

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

from . import config_flags, flags, output, sources, workers

import numpy as np

from tfmemloc import (
    ExampleScores,
    Recording,
    Run,
    ScoreConfig,
    SearchConfig,
    apply_decisions,
    configs,
    find_critical_units,
    find_duplicates,
    find_label_errors,
    report,
    score_without_network,
    scores,
    second_split_times,
    storage,
)
from tfmemloc.data import Examples, input_kinds, read_pairs
from tfmemloc.fields import hints
from tfmemloc.labels.by_removal import is_without_ties, score_by_removal
from tfmemloc.labels.review import REVIEW
from tfmemloc.scores.suspects import ISSUES, PAGE, TABLE

FLAGS = flags.FLAGS
sources.define(
    flags.RUN_HELP + " Or a pattern, such as 'runs/mine/*', that matches "
    "several runs of the same data, which are scored together."
)
flags.flags.DEFINE_string(
    "out_dir",
    None,
    "Default: the run's folder; of several runs, the folder that holds them.",
)
flags.flags.DEFINE_string(
    "decisions",
    None,
    "A table that review.html saved: writes corrected labels and scores "
    "nothing.",
)
flags.flags.DEFINE_string(
    "recording",
    None,
    "With --model: the folder that tfmemloc.RecordExamples wrote while it was "
    "trained. How late each label was learned then joins the ranking, as it "
    "does for a run.",
)
config_flags.define(ScoreConfig)
workers.define_workers(
    "Share the passes over the data between so many processes on this machine"
)
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


def main() -> None:
    """Scores, or corrects; writes, prints."""
    sources.check(without_network=True)
    if workers.are_used() and FLAGS.run_dir is None and FLAGS.model is None:
        raise ValueError(
            "Workers share passes of a network over the data. Expected "
            "--run_dir or --model, or one process. Received: neither."
        )
    runs = _runs() if FLAGS.run_dir else []
    directory = pathlib.Path(FLAGS.out_dir or _folder(runs))
    if FLAGS.decisions:
        _correct(runs, directory)
    elif workers.begins("score_examples", directory):
        return
    elif runs and not is_without_ties(runs):
        _score_tied(runs, directory)
    else:
        _score_by_removal(runs, directory)


def _score_by_removal(runs: list[Run], directory: pathlib.Path) -> None:
    _refuse_tied_flags()
    source, examples, _ = _source(runs)
    if workers.is_first():
        sources.describe(source, examples)
    if source is None:
        _recording()  # Refuses one.
        scored = score_without_network(examples, progress=True)
        _show(scored, examples, directory)
        return
    with workers.shared(directory / "shared"):
        scored = score_by_removal(
            source,
            examples,
            directory=directory / "work",
            recording=_recording(),
            progress=True,
        )
    _show(scored, examples, directory)


def _source(runs: list[Run]):
    """What is asked, the examples, and where they come from."""
    if not runs:
        return sources.read(without_network=True)
    examples = runs[0].examples(download=FLAGS.download)
    return runs if len(runs) > 1 else runs[0], examples, runs[0].data


def _recording() -> Recording | None:
    """The recording of --model; that of a run is found in its folder."""
    if FLAGS.recording is None:
        return None
    if FLAGS.model is None:
        raise ValueError(
            "--recording expected a --model. Received: "
            + ("a run, whose own is used." if FLAGS.run_dir else "none.")
        )
    return Recording.open(FLAGS.recording)


def _correct(runs: list[Run], directory: pathlib.Path) -> None:
    """Writes the labels that were decided about, for a training anew."""
    _, examples, data = _source(runs)
    corrected = apply_decisions(examples, FLAGS.decisions)
    known = {}
    if data.label_file:
        known = read_pairs(data.label_file, "label", int)
    train, before = corrected.train, examples.train
    # What was decided now, and noise that was added, which is not added anew.
    changed = (train.label != before.label) | (train.label != before.true_label)
    known |= dict(
        zip(
            train.example_id[changed].tolist(),
            train.label[changed].tolist(),
            strict=True,
        )
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "corrected_labels.csv"
    lines = [f"{i},{label}" for i, label in sorted(known.items())]
    storage.write_text(path, "\n".join(["example_id,label", *lines, ""]))
    count = int((corrected.label != examples.label).sum())
    print(f"{count} labels corrected: {path}")
    data = dataclasses.replace(
        data, label_file=str(path), noise_rate=0.0, noise_file=None
    )
    if list(input_kinds(examples).values()) == ["picture"]:
        where = directory / "corrected"
        print(
            f"train on them: {flags.start_of('binaries.train')} "
            f"{config_flags.line(data)} {_as_before(runs, data)}"
            f"--run_dir={where}"
        )
    print(
        "or a network of your own, in Python:\n"
        "  train = tfmemloc.load(tfmemloc.DataConfig("
        f"{data.dataset!r}, noise_rate=0.0, label_file={str(path)!r})).train\n"
        f"  model.fit({_as_fitted(examples)}, train.label)"
    )


def _as_before(runs: list[Run], data: configs.DataConfig) -> str:
    """The flags that train the same network in the same way, and a space."""
    if not runs or runs[0].model_config is None or runs[0].training is None:
        return ""
    line = config_flags.training_line(
        data.dataset, runs[0].model_config, runs[0].training
    )
    return f"{line} "


def _as_fitted(examples: Examples) -> str:
    """The inputs for `fit`, as Python."""
    arrays = "tfmemloc.data.as_arrays(train)"
    if len(examples.inputs) > 1:
        return arrays
    return f"{arrays}[{next(iter(examples.inputs))!r}]"


def _refuse_tied_flags() -> None:
    """Refuses flags that only networks with tied dropout read."""
    given = [
        f"--{name}"
        for name in (
            *hints(ScoreConfig),
            "critical_set",
            "second_split",
            "subset_runs",
        )
        if FLAGS[name].present
    ]
    if given:
        raise ValueError(
            "A network without tied dropout is judged by a copy without its "
            f"memory. Expected no {', '.join(given)}, which scores of tied "
            "dropout alone read."
        )


def _score_tied(runs: list[Run], directory: pathlib.Path) -> None:
    _recording()  # Refuses one: each run has its own.
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
    extra = {}
    if workers.is_first():
        extra = _extra_scores(run, examples, directory)
    with workers.shared(directory / "shared"):
        scored = scores.score_examples(
            runs,
            examples,
            config_flags.read(ScoreConfig),
            extra_scores=extra,
        )
    _show(scored, examples, directory)


def _show(
    scored: ExampleScores, examples: Examples, directory: pathlib.Path
) -> None:
    """Writes the pages and says where they are; the first worker does."""
    if not workers.is_first():
        return
    found = find_label_errors(scored, examples, directory, shown=FLAGS.shown)
    output.print_section(report.section_of(found))
    twice = find_duplicates(examples)
    twice.save(directory / "duplicates")
    print(f"duplicates: {twice.sentence()}")
    print(f"table: {directory / TABLE}")
    print(f"for cleanlab and FiftyOne: {directory / ISSUES}")
    print(f"page: {directory / PAGE}")
    print(f"decide on: {directory / REVIEW}")


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
